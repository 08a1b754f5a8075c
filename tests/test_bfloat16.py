"""In bfloat16: removing tokens costs no more precision than the dense model loses, and every method trains."""

from __future__ import annotations

import copy

import pytest
import torch

import methods
from methods.masked import straight_through
from tests.cases import CASES
from tests.tiny import HEADS, batch_for, labels_for, tiny_reducer

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


def train_one_update(name: str, head: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """One update of a reducer held in `dtype`; the gradients by name."""
    reducer = tiny_reducer(name, head=head).to(dtype).train()
    batch = batch_for(reducer)
    labels = {key: y.to(dtype) if y.is_floating_point() else y for key, y in labels_for(reducer, batch).items()}
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(reducer.parameters(), lr=1e-3)
    reducer(**batch, **labels).loss.backward()
    optimizer.step()
    reducer.after_update()
    assert all(weight.isfinite().all() for weight in reducer.parameters())
    return {key: weight.grad for key, weight in reducer.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", CASES)
def test_a_model_in_bfloat16_trains(name, head):
    """The type that transformers loads such a checkpoint in, without autocast."""
    if head in methods.lookup(name).traits.unsupported:
        return
    gradients = train_one_update(name, head, torch.bfloat16)
    exact = methods.lookup(name)._keep_in_fp32_modules_strict or ()  # learned scalars
    assert gradients
    for key, gradient in gradients.items():
        assert gradient.dtype == (torch.float32 if key.rpartition(".")[2] in exact else torch.bfloat16), key


@pytest.mark.parametrize("name", ["transkimmer", "lot"])
def test_gates_carry_gradients_in_float16(name):
    part = {"transkimmer": "predictors", "lot": "routers"}[name]
    gradients = train_one_update(name, "classification", torch.float16)
    assert any(key.startswith(part) and gradient.abs().max() > 0 for key, gradient in gradients.items())


def test_a_gate_in_float32_promotes_no_states():
    gate = torch.tensor([[1.0, 0.0]], requires_grad=True)
    new, old = torch.randn(2, 1, 2, 4).bfloat16()
    mixed = straight_through(gate.bool(), gate, new, old)
    assert mixed.dtype == torch.bfloat16 and torch.equal(mixed, torch.stack((new[:, 0], old[:, 1]), dim=1))
    mixed.sum().backward()
    assert torch.equal(gate.grad, (new - old).sum(dim=-1).float())
