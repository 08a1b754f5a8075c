"""Half precision in packed mode: long texts are averaged exactly."""

from __future__ import annotations

import copy

import pytest
import torch

import methods
from methods.packing import segment_sum
from tests.tiny import tiny_model

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
