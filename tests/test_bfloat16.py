"""Removing tokens in bfloat16: the answer is as near to the exact one as the dense model's in bfloat16 is."""

from __future__ import annotations

import copy

import pytest
import torch

import methods
from tests.cases import CASES
from tests.tiny import batch_for, tiny_reducer

BATCHES = ((11, 7, 9, 4), (12, 12, 3, 8), (5, 10, 6, 12), (9, 9, 9, 9))
NOISE = 2.0  # of so few texts: how much larger than the dense model's a method's error may be


def answers(reducer: methods.TokenReducer, mode: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (texts, classes), exact to their type, and tokens (texts, layers) that each layer computed."""
    outputs = []
    with torch.no_grad(), reducer.mode(mode):
        for lengths in BATCHES:
            torch.manual_seed(0)
            outputs.append(reducer(**batch_for(reducer, lengths)))
    logits, tokens = ([of(output) for output in outputs] for of in (lambda o: o.logits, lambda o: o.trace.ffn_tokens))
    return torch.cat(logits).double(), torch.cat(tokens)


def error(name: str) -> tuple[float, int]:
    """Change of logits in bfloat16, as a share of their size, over texts with the same decisions; and their number."""
    reducer = tiny_reducer(name).eval()
    expected, tokens = answers(copy.deepcopy(reducer).double(), "masked")
    found, computed = answers(reducer.bfloat16(), "packed")
    alike = (tokens == computed).all(dim=1)
    return float((found - expected)[alike].norm() / expected[alike].norm()), int(alike.sum())


@pytest.mark.parametrize("name", [name for name in CASES if name != "dense"])
def test_what_is_removed_costs_no_precision(name):
    dense, texts = error("dense")
    own, alike = error(name)
    assert texts == 16 and alike >= 8
    assert 0 < own <= NOISE * dense
