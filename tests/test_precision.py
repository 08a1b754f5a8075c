"""Thresholds, gates and multipliers are learned in float32, whatever the model is in."""

from __future__ import annotations

import pytest
import torch

import methods
from methods.precision import ScalarsInFloat32
from tests.cases import CASES
from tests.tiny import batch_for, labels_for, tiny_model, tiny_reducer

LEARNED = [name for name in CASES if issubclass(methods.lookup(name), ScalarsInFloat32)]
HALVES = [torch.float16, torch.bfloat16]


def scalars(reducer):
    return dict(reducer.named_parameters(recurse=False))


def test_ltp_and_top_are_the_methods_that_learn_scalars():
    assert LEARNED == ["top", "ltp"]
    for name in LEARNED:
        assert set(scalars(tiny_reducer(name))) == methods.lookup(name)._keep_in_fp32_modules_strict


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", LEARNED)
def test_a_cast_model_leaves_them_exact(name, dtype):
    reducer = tiny_reducer(name).float()
    before = {key: value.detach().clone() for key, value in scalars(reducer).items()}
    for cast in (reducer.to(dtype), reducer.to(dtype), methods.create(name, tiny_model("bert").to(dtype))):
        assert cast.model.dtype == dtype
        assert all(value.dtype == torch.float32 for value in scalars(cast).values())
    assert all(torch.equal(value, before[key]) for key, value in scalars(reducer).items())
    assert all(value.dtype == torch.float64 for value in scalars(reducer.double()).values())


@pytest.mark.parametrize("composed", [False, True])
@pytest.mark.parametrize("name", LEARNED)
def test_they_are_saved_and_loaded_as_they_are(name, composed, tmp_path):
    torch.manual_seed(1)
    reducer = methods.create(f"{name}+deebert" if composed else name, tiny_model("bert").bfloat16())
    reducer.save_pretrained(tmp_path)
    for loaded in (methods.load(tmp_path), methods.load(tmp_path, dtype=torch.bfloat16)):
        assert loaded.model.dtype == torch.bfloat16
        part, own = (whole.parts[name] if composed else whole for whole in (loaded, reducer))
        assert all(torch.equal(value, scalars(own)[key]) for key, value in scalars(part).items())
        assert all(value.dtype == torch.float32 for value in scalars(part).values())


def test_small_updates_move_thresholds():
    reducer = methods.create("ltp", tiny_model("bert").bfloat16())
    before = reducer.thresholds.detach().clone()
    optimizer = torch.optim.AdamW([reducer.thresholds], lr=2e-5, weight_decay=0.0)
    for _ in range(100):
        reducer.thresholds.grad = -torch.ones_like(reducer.thresholds)
        optimizer.step()
    torch.testing.assert_close(reducer.thresholds - before, torch.full((3,), 2e-3), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("dtype", HALVES)
def test_macs_are_counted_where_float16_has_no_room(dtype):
    torch.manual_seed(0)
    reducer = methods.create("top", tiny_model("bert").float(), first_location=1, bins=20)
    torch.nn.init.constant_(reducer.gate_loga, 4.0)
    lengths = torch.tensor([25, 64, 128])
    exact = reducer.sparsity(reducer.kept_shares(), lengths)
    half = reducer.to(dtype)
    torch.testing.assert_close(half.sparsity(half.kept_shares(), lengths), exact)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", LEARNED)
def test_a_model_in_half_precision_trains(name, dtype):
    reducer = tiny_reducer(name).to(dtype).train()
    CASES[name].undecided(reducer)
    batch = batch_for(reducer)
    output = reducer(**batch, **labels_for(reducer, batch))
    output.loss.backward()
    assert output.loss.isfinite()
    gradients = {key: value.grad for key, value in scalars(reducer).items()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    torch.optim.AdamW(reducer.parameters(), lr=1e-3, fused=True).step()
    reducer.after_update()
    reducer.eval()
    assert reducer(**batch).logits.isfinite().all()
