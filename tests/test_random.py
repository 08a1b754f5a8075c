"""Random: the schedule is kept to the token, and nothing but text, seed and position decides what is kept."""

from __future__ import annotations

import math

import pytest
import torch

import methods
from tests.tiny import make_batch, tiny_model, tiny_reducer

SCHEDULE = (0.8, 0.5, 0.3)


def kept(reducer, batch, mode="packed"):
    with torch.no_grad(), reducer.mode(mode):
        return reducer(**batch).trace.keep_masks


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_the_schedule_is_kept_exactly(mode):
    """ceil(share * length) tokens at each layer, for every length."""
    reducer, lengths = tiny_reducer("random"), tuple(range(1, 31))
    expected = [[-(-round(10 * share) * n // 10) for share in SCHEDULE] for n in lengths]  # integer arithmetic
    assert expected[9] == [8, 5, 3]  # 0.3 * 10 is 3, whatever the float says
    assert kept(reducer, make_batch(lengths), mode).sum(dim=2).tolist() == expected


def test_the_default_halves_the_tokens_over_the_depth():
    reducer = methods.create("random", tiny_model("bert"))
    expected = [math.ceil(12 * share - 1e-9) for share in (5 / 6, 4 / 6, 3 / 6)]
    assert kept(reducer, make_batch((12,))).sum(dim=2).tolist() == [expected]


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_batch_padding_and_mode_do_not_matter(mode):
    reducer, lengths = tiny_reducer("random"), (9, 4, 1, 7, 12)
    batch = make_batch(lengths, padded_to=20)
    together = kept(reducer, batch, mode)
    for row, length in enumerate(lengths):
        assert torch.equal(kept(reducer, make_batch((length,)))[0], together[row, :, :length])
    assert not (together & ~batch["attention_mask"].bool().unsqueeze(1)).any()


def test_the_draw_and_the_text_decide():
    """Another draw keeps other tokens of the same text; the same draw keeps other tokens of another text."""
    reducer, batch = tiny_reducer("random"), make_batch((30,))
    first = kept(reducer, batch)
    assert torch.equal(kept(reducer, batch), first)
    reducer.set_options(draw=1)
    assert not torch.equal(kept(reducer, batch), first)
    other = {**batch, "input_ids": batch["input_ids"].roll(1, dims=1)}
    reducer.set_options(draw=0)
    assert not torch.equal(kept(reducer, other), first)


def test_every_position_is_about_equally_likely():
    """Over 2,000 texts, each of 19 positions within 4.5 standard errors; pairs of neighbours too."""
    reducer = methods.create("random", tiny_model("bert", num_hidden_layers=1), keep_schedule=(0.5,))
    ids = torch.randint(5, 60, (2000, 20), generator=torch.Generator().manual_seed(0))
    masks = kept(reducer, {"input_ids": ids})[:, 0].double()
    assert (masks[:, 0] == 1).all() and (masks.sum(dim=1) == 10).all()
    share = 9 / 19  # of the others
    error = (share * (1 - share) / 2000) ** 0.5
    assert ((masks[:, 1:].mean(dim=0) - share).abs() < 4.5 * error).all()
    pairs = (masks[:, 1:-1] * masks[:, 2:]).mean(dim=0)
    both = 9 * 8 / (19 * 18)
    assert ((pairs - both).abs() < 4.5 * (both * (1 - both) / 2000) ** 0.5).all()


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ((0.5, 0.5), "keep_schedule has 2 shares for 3 layers"),
        ((0.5, 0.0, 0.5), r"keep_schedule must hold shares in \(0, 1\], got \(0.5, 0.0, 0.5\)"),
        ((0.5, 1.1, 0.5), "shares in"),
        ((0.5, math.nan, 0.5), "shares in"),
        ((), "keep_schedule has 0 shares for 3 layers"),
    ],
)
def test_refused_schedules(schedule, message):
    with pytest.raises(ValueError, match=message):
        methods.create("random", tiny_model("bert"), keep_schedule=schedule)


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_where_the_schedule_rises_tokens_leap_and_are_back(mode):
    reducer = methods.create("random", tiny_model("bert"), keep_schedule=(0.3, 1.0, 0.5))
    masks = kept(reducer, make_batch((10, 7, 1)), mode)
    assert masks.sum(dim=2).tolist() == [[3, 10, 5], [3, 7, 4], [1, 1, 1]]
    assert masks[:, :, 0].all()
