"""Ragged batches: hand-worked numbers and properties over random lengths."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.timing import peak_memory_bytes
from methods import scored_attention
from methods.attention import SHORT, packed_attention, padded_attention
from methods.packing import Lengths, cumulative, masked_rank, pad, segment_rank, segment_sum, sequence_index, unpad

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
lengths_lists = st.lists(st.integers(1, 9), min_size=1, max_size=6)
seeds = st.integers(0, 2**31)
quickly = settings(max_examples=60, deadline=None)


def split(values, lengths):
    return torch.split(values, lengths)


def naive_attention(query, key, value, bias):
    """One sequence, head after head, from the definition: context, attention received, attention to oneself."""
    contexts, votes = [], torch.zeros(len(query), len(query)).double()
    for q, k, v in zip(query.unbind(1), key.unbind(1), value.unbind(1), strict=True):
        weights = torch.exp(q @ k.T / math.sqrt(q.shape[1]) + bias)
        weights = weights / weights.sum(dim=1, keepdim=True)
        contexts.append(weights @ v)
        votes += weights[:, : len(q)] / query.shape[1]
    return torch.stack(contexts, dim=1), votes.sum(dim=0), votes.diagonal()


def test_by_hand():
    """Two texts of two and three tokens."""
    lengths = torch.tensor([2, 3])
    assert cumulative(lengths).tolist() == [0, 2, 5]
    assert sequence_index(lengths).tolist() == [0, 0, 1, 1, 1]
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    padded = torch.tensor([[10, 11, 0], [20, 21, 22]])
    assert unpad(padded, mask).tolist() == [10, 11, 20, 21, 22]
    assert pad(torch.tensor([10, 11, 20, 21, 22]), mask, -1).tolist() == [[10, 11, -1], [20, 21, 22]]
    values = torch.tensor([1.0, 2.0, 10.0, 20.0, 30.0])
    assert segment_sum(values, sequence_index(lengths), 2).tolist() == [3.0, 60.0]
    assert segment_rank(torch.tensor([5.0, 7.0, 1.0, 3.0, 1.0]), lengths).tolist() == [1, 0, 1, 0, 2]
    assert masked_rank(torch.tensor([[5.0, 9.0, 7.0]]), torch.tensor([[True, False, True]])).tolist() == [[1, 2, 0]]


def test_one_text_of_one_token():
    lengths = torch.tensor([1])
    assert cumulative(lengths).tolist() == [0, 1] and sequence_index(lengths).tolist() == [0]
    assert segment_rank(torch.tensor([3.0]), lengths).tolist() == [0]


@quickly
@given(lengths_lists, seeds, st.sampled_from([(), (4,), (2, 3)]))
def test_pad_undoes_unpad(lengths, seed, shape):
    """Right padding or holes: what is real comes back where it was, the rest is filled."""
    torch.manual_seed(seed)
    mask = torch.rand(len(lengths), max(lengths)) < 0.7
    mask[:, 0] = True
    padded = torch.randn(*mask.shape, *shape)
    packed = unpad(padded, mask)
    assert packed.shape == (int(mask.sum()), *shape)
    back = pad(packed, mask, 7.0)
    assert torch.equal(back[mask], padded[mask]) and (back[~mask] == 7.0).all()
    assert torch.equal(unpad(back, mask), packed)


@quickly
@given(lengths_lists)
def test_indices_agree_with_lengths(lengths):
    """cu_seqlens cuts the packed rows where sequence_index changes."""
    tensor = torch.tensor(lengths)
    bounds, index = cumulative(tensor), sequence_index(tensor)
    assert bounds[0] == 0 and bounds[-1] == len(index) == sum(lengths)
    for b in range(len(lengths)):
        assert (index[bounds[b] : bounds[b + 1]] == b).all()
    assert torch.equal(torch.bincount(index), tensor)


@quickly
@given(st.data(), lengths_lists)
def test_ranks_against_sorting_in_python(data, lengths):
    """0 = largest; few distinct values, so that ties are common: the earlier row comes first."""
    values = data.draw(st.lists(st.integers(-2, 2), min_size=sum(lengths), max_size=sum(lengths)))
    expected = []
    for start, length in zip(cumulative(torch.tensor(lengths)).tolist(), lengths, strict=False):
        own = values[start : start + length]
        order = sorted(range(length), key=lambda i, own=own: (-own[i], i))
        expected += [order.index(i) for i in range(length)]
    assert segment_rank(torch.tensor(values).double(), torch.tensor(lengths)).tolist() == expected


@quickly
@given(lengths_lists, seeds)
def test_sums_against_a_loop(lengths, seed):
    torch.manual_seed(seed)
    values = torch.randn(sum(lengths), 3).double()
    sums = segment_sum(values, sequence_index(torch.tensor(lengths)), len(lengths))
    torch.testing.assert_close(sums, torch.stack([part.sum(dim=0) for part in split(values, lengths)]), **TIGHT)


@quickly
@given(lengths_lists, seeds, st.booleans(), st.integers(0, 1))
def test_attention_against_its_definition(lengths, seed, biased, extra):
    """Each sequence sees itself alone; equal lengths run together, in order; keys may outnumber queries."""
    torch.manual_seed(seed)
    key_lengths = [length + extra for length in lengths]
    query = torch.randn(sum(lengths), 2, 4).double()
    key, value = torch.randn(2, sum(key_lengths), 2, 4).double()
    bias = torch.randn(sum(key_lengths)).double() if biased else None
    with_scores = packed_attention(query, key, value, lengths, key_lengths, bias=bias, scores=True)
    without, none, nothing = packed_attention(query, key, value, lengths, key_lengths, bias=bias)
    assert none is None and nothing is None
    added = torch.zeros(sum(key_lengths)) if bias is None else bias
    keys = (split(x, key_lengths) for x in (key, value, added))
    parts = [naive_attention(*one) for one in zip(split(query, lengths), *keys, strict=True)]
    padded = padded_attention(query, key, value, lengths, key_lengths, bias, 0.0, True)
    for all_of_them in (with_scores, padded):
        for result, pieces in zip(all_of_them, zip(*parts, strict=True), strict=True):
            torch.testing.assert_close(result, torch.cat(pieces), **TIGHT)
    padded, *_ = padded_attention(query, key, value, lengths, key_lengths, bias, 0.0, False)
    for context in (without, padded):
        torch.testing.assert_close(context, with_scores[0], **TIGHT)


@pytest.mark.parametrize("lengths", [(300,), (150, 150), (SHORT, 3, SHORT, 3, 129), (17, 17, 2, 17)])
@pytest.mark.parametrize("cells", [17 * 17, 150 * 100, scored_attention.CELLS])
def test_long_short_and_neighbouring_sequences_against_the_definition(monkeypatch, cells, lengths):
    """Lengths on both sides of every boundary: of blocks, of gathering, of running together."""
    monkeypatch.setattr(scored_attention, "CELLS", cells)
    torch.manual_seed(0)
    query, key, value = torch.randn(3, sum(lengths), 2, 4).double()
    results = packed_attention(query, key, value, lengths, lengths, scores=True)
    zeros = torch.zeros(sum(lengths))
    parts = [
        naive_attention(*one) for one in zip(*(split(x, lengths) for x in (query, key, value, zeros)), strict=True)
    ]
    for result, pieces in zip(results, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(result, torch.cat(pieces), **TIGHT)
    plain, *_ = packed_attention(query, key, value, lengths, lengths)
    torch.testing.assert_close(plain, results[0], **TIGHT)


def test_scores_take_memory_that_grows_with_the_length_alone():
    """Four times the tokens, at most five times the memory, never the probabilities of all rows."""
    peaks = []
    for length in (256, 1024):
        query, key, value = torch.randn(3, length, 4, 16)
        with torch.inference_mode():
            run = functools.partial(packed_attention, query, key, value, [length], [length], scores=True)
            peaks.append(peak_memory_bytes(run))
    assert peaks[1] < 5 * peaks[0] and peaks[1] < 1024 * 1024 * 4 * 4


def test_ragged_gradients_are_those_of_the_definition():
    lengths = (20, 20, 3, 5, 3)
    packed = torch.randn(3, sum(lengths), 2, 4).double().requires_grad_()
    context, received, diagonal = packed_attention(*packed, lengths, lengths, scores=True)
    (context.sin().sum() + received.sin().sum() + diagonal.sin().sum()).backward()
    own = packed.grad.clone()
    packed.grad = None
    zeros = torch.zeros(sum(lengths))
    parts = [naive_attention(*one) for one in zip(*(split(x, lengths) for x in (*packed, zeros)), strict=True)]
    sum(torch.cat(pieces).sin().sum() for pieces in zip(*parts, strict=True)).backward()
    torch.testing.assert_close(own, packed.grad, **TIGHT)


@quickly
@given(lengths_lists, seeds)
def test_the_order_of_sequences_only_reorders_the_result(lengths, seed):
    torch.manual_seed(seed)
    packed = torch.randn(3, sum(lengths), 2, 4).double()
    order = torch.randperm(len(lengths)).tolist()

    def reorder(x):
        parts = split(x, lengths)
        return torch.cat([parts[i] for i in order])

    moved = [lengths[i] for i in order]
    straight = packed_attention(*packed, lengths, lengths, scores=True)
    shuffled = packed_attention(*(reorder(x) for x in packed), moved, moved, scores=True)
    for a, b in zip(straight, shuffled, strict=True):
        torch.testing.assert_close(reorder(a), b, **TIGHT)


def test_sequences_side_by_side():
    lengths = Lengths([2, 3, 1], torch.device("cpu"))
    assert lengths.bounds.tolist() == [0, 2, 5, 6] and lengths.bounds.dtype == torch.int32
    rectangle, packed = lengths.rectangle, torch.arange(6.0).unsqueeze(1) + torch.tensor([0.0, 10.0])
    assert rectangle.mask.tolist() == [[True, True, False], [True, True, True], [True, False, False]]
    laid = rectangle.lay(packed)
    assert laid.shape == (3, 3, 2) and laid[..., 0].tolist() == [[0, 1, 0], [2, 3, 4], [5, 5, 5]]  # pads: some token
    assert torch.equal(rectangle.take(laid), packed)
    assert lengths.rectangle is rectangle and Lengths.of(lengths, lengths.device) is lengths
    assert Lengths.of([2, 3, 1], lengths.device) == lengths
