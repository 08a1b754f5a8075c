"""Half precision in packed mode: long texts are averaged exactly, types that autocast mixes fit."""

from __future__ import annotations

import copy

import pytest
import torch

import methods
from methods.attention import has_varlen
from methods.packing import Lengths, on_device, segment_sum
from tests.cases import EVERY
from tests.tiny import batch_for, logits_of, tiny_model, tiny_reducer

HALF = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", HALF)
def test_sums_of_long_texts_are_exact(dtype):
    index = torch.zeros(600, dtype=torch.long)
    summed = segment_sum(torch.ones(600, dtype=dtype), index, 1)
    assert summed.dtype == dtype and summed.item() == 600
    assert segment_sum(torch.ones(600, dtype=torch.long), index, 1).dtype == torch.long


def test_the_mean_of_a_long_text_is_as_exact_packed_as_masked():
    model = tiny_model("modernbert_mean", max_position_embeddings=1024).float()
    exact = methods.create("dense", model).eval()
    half = methods.create("dense", copy.deepcopy(model).bfloat16()).eval()
    ids = torch.randint(5, 60, (2, 600))
    with torch.no_grad():
        wanted, packed = exact(input_ids=ids).logits, half(input_ids=ids).logits
        with half.mode("masked"):
            masked = half(input_ids=ids).logits
    assert (packed - wanted).abs().max() < 2 * (masked - wanted).abs().max() + 0.01


@pytest.mark.parametrize("head", ["classification", "token_classification"])
@pytest.mark.parametrize("family", ["albert", "electra"])
def test_autocast_may_give_two_types(family, head, monkeypatch):
    """As on CUDA, whose autocast norms in float32, projects narrow embeddings to bfloat16, and leaves these alone."""
    copied, normed = torch.Tensor.index_copy, torch.nn.functional.layer_norm

    def strict(self, *arguments):
        with torch.autocast("cpu", enabled=False):
            return copied(self, *arguments)

    def exact(hidden, *arguments):
        with torch.autocast("cpu", enabled=False):
            return normed(hidden.float(), *arguments)

    monkeypatch.setattr(torch.Tensor, "index_copy", strict)
    monkeypatch.setattr(torch.nn.functional, "layer_norm", exact)
    for name in EVERY:
        if head in methods.lookup(name).traits.unsupported:
            continue
        reducer = tiny_reducer(name, family, head).float().eval()
        batch = batch_for(reducer)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            output = reducer(**batch)
        assert logits_of(output, batch["attention_mask"]).isfinite().all(), name


@pytest.mark.parametrize(
    ("head_size", "dtype", "capability", "taken"),
    [
        (64, torch.bfloat16, (8, 0), True),
        (256, torch.float16, (9, 0), True),
        (64, torch.float32, (9, 0), False),
        (20, torch.bfloat16, (9, 0), False),
        (264, torch.bfloat16, (9, 0), False),
        (64, torch.float16, (7, 5), False),
    ],
)
def test_the_kernel_for_lengths_is_asked_only_for_what_it_can(head_size, dtype, capability, taken, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert has_varlen(torch.zeros(3, 2, head_size, dtype=dtype)) is taken


def test_what_the_host_knows_is_on_the_host_whatever_torch_s_default_device():
    """A GPU's memory cannot be pinned."""
    with torch.device("meta"):
        assert on_device([2, 3], torch.device("cpu")).tolist() == [2, 3]
        assert Lengths([2, 3], torch.device("cpu")).bounds.tolist() == [0, 2, 5]
