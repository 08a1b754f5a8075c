"""Training as users set it up: gradient checkpointing and bfloat16 autocast, for every method."""

from __future__ import annotations

import copy

import pytest
import torch

import methods
from tests.cases import CASES
from tests.tiny import FAMILIES, batch_for, labels_for, tiny_reducer


def gradients(reducer: methods.TokenReducer) -> dict[str, torch.Tensor]:
    """Of one update with labels, dropout on, from the same draws."""
    batch = batch_for(reducer)
    torch.manual_seed(0)
    reducer.zero_grad()
    reducer(**batch, **labels_for(reducer, batch)).loss.backward()
    return {name: p.grad.clone() for name, p in reducer.named_parameters() if p.grad is not None}


def enable(reducer: methods.TokenReducer, **how: bool) -> None:
    """As users do; transformers has renamed it."""
    getattr(reducer, "activation_checkpointing_enable", reducer.gradient_checkpointing_enable)(*([how] if how else []))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "albert"])  # whose stock model has none
def test_gradient_checkpointing_changes_no_gradient(name, family):
    reducer = tiny_reducer(name, family).train()
    plain = gradients(copy.deepcopy(reducer))
    enable(reducer)
    checkpointed = gradients(reducer)
    assert plain.keys() == checkpointed.keys() and plain
    for key, value in plain.items():
        torch.testing.assert_close(checkpointed[key], value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_reentrant_checkpoints_change_no_gradient(name):
    """The older kind, which sees only the gradients of what a block is given."""
    reducer = tiny_reducer(name).train()
    plain = gradients(copy.deepcopy(reducer))
    enable(reducer, use_reentrant=True)
    checkpointed = gradients(reducer)
    assert plain.keys() == checkpointed.keys()
    for key, value in plain.items():
        torch.testing.assert_close(checkpointed[key], value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_gradient_checkpointing_keeps_fewer_activations(name):
    held = []
    for enabled in (False, True):
        reducer = tiny_reducer(name).train()
        if enabled:
            enable(reducer)
        saved = []
        batch = batch_for(reducer)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):  # noqa: B023
            reducer(**batch, **labels_for(reducer, batch))
        held.append(sum(saved))
    assert held[1] < 0.9 * held[0]


@pytest.mark.parametrize("name", CASES)
def test_an_update_under_bfloat16_autocast_follows_the_exact_one(name):
    """The loss is the exact one to the precision of bfloat16, where the same decisions are taken; every gradient is
    finite."""
    reducer = tiny_reducer(name).float().train()
    batch = batch_for(reducer)
    labels = labels_for(reducer, batch)
    losses = []
    for enabled in (False, True):
        torch.manual_seed(0)
        reducer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = reducer(**batch, **labels).loss
        assert loss.dtype == torch.float32
        loss.backward()
        assert all(p.grad.isfinite().all() for p in reducer.parameters() if p.grad is not None)
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.25, abs=0.1)


def test_data_parallel_is_refused():
    """Its replicas would run the modules of the first device."""
    with pytest.raises(ValueError, match=r"reducers do not run in nn\.DataParallel; use torchrun"):
        tiny_reducer("transkimmer")._replicate_for_data_parallel()
