"""Options of a reducer that exists: a change is checked like a new reducer's, takes effect at once, or is refused."""

from __future__ import annotations

import pytest
import torch

import methods
from tests.tiny import batch_for, make_batch, tiny_model, tiny_reducer


def kept(reducer: methods.TokenReducer) -> list[list[int]]:
    with torch.no_grad():
        return reducer(**make_batch((9, 4, 7, 12))).trace.ffn_tokens.tolist()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("random", {"keep_schedule": (0.2, 0.2)}, "keep_schedule has 2 shares for 3 layers"),
        ("deebert", {"threshold": (0.1,)}, "threshold has 1 values for 2 off-ramps"),
        ("deebert", {"last_ramp": True}, "last_ramp of deebert is built into the reducer and stays False"),
        ("tr_bert", {"policy_layers": (1,)}, r"stays \(1, 2\); create another one for \(1,\)"),
        ("tr_bert", {"policy_layers": (1, 3)}, "policy_layers of tr_bert is built into the reducer"),
        ("deformer", {"split": 99}, "split is 99 for 3 layers"),
        ("transkimmer", {"predictor_norm": False}, "predictor_norm of transkimmer is built into the reducer"),
        ("transkimmer+deebert", {"threshold": (0.1, 0.1, 0.1)}, "threshold has 3 values for 2 off-ramps"),
        ("transkimmer+deebert", {"predictor_norm": False}, "predictor_norm of transkimmer is built into the reducer"),
    ],
)
def test_a_change_that_does_not_fit_is_refused(name, change, message):
    """Nothing is changed then: the reducer runs, is saved and loaded as before."""
    reducer = tiny_reducer(name)
    options, batch = reducer.options, batch_for(reducer)
    with torch.no_grad():
        before = reducer(**batch).logits
    with pytest.raises(ValueError, match=message):
        reducer.set_options(**change)
    assert reducer.options == options and reducer.config.options == vars(options)
    with torch.no_grad():
        assert torch.equal(reducer(**batch).logits, before)


def test_options_that_are_fixed_may_be_given_again():
    """As a checkpoint does, which restores all of them."""
    reducer = tiny_reducer("tr_bert")
    reducer.set_options(**vars(reducer.options) | {"threshold": 0.4})
    assert reducer.options.threshold == 0.4


def test_another_schedule_of_random_counts_at_once(tmp_path):
    reducer = methods.create("random", tiny_model("bert"), keep_schedule=(1.0, 1.0, 1.0))
    reducer.set_options(keep_schedule=(0.2, 0.4, 0.2))
    changed = kept(reducer)
    assert changed == kept(methods.create("random", tiny_model("bert"), keep_schedule=(0.2, 0.4, 0.2)))
    reducer.save_pretrained(tmp_path)
    assert kept(methods.load(str(tmp_path)).eval()) == changed


def test_a_schedule_followed_for_timing_ends_with_the_next_option():
    reducer = methods.create("random", tiny_model("bert"))
    halving = kept(reducer)
    reducer.follow_schedule((0.1, 0.5, 0.0))  # never rising again, whatever it says, and nothing but [CLS] at the end
    assert [row[-1] for row in kept(reducer)] == [1] * 4 and not reducer.leaps
    reducer.set_options(draw=0)
    assert kept(reducer) == halving
