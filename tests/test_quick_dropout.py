"""Dropout as the training loop draws it on a CPU: the same distribution as torch's, from fewer draws."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import methods
from benchmarks import train
from benchmarks.quick_dropout import LEVELS, factors, quick_dropout
from tests.tiny import tiny_model


def quick(values, p, **given):
    with quick_dropout():
        return F.dropout(values, p, **given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (2, 3, 4), (0, 4)])
def test_what_stays_is_scaled_and_the_rest_is_zero(shape, dtype):
    dropped = quick(torch.ones(shape, dtype=dtype), 0.25)
    assert dropped.shape == shape and dropped.dtype == dtype
    assert bool(((dropped == 0) | (dropped == torch.tensor(4 / 3, dtype=dtype))).all())


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_each_element_stays_with_its_probability_alone(p):
    torch.manual_seed(3)
    count = 400_000
    kept = (factors((count,), round(p * LEVELS), torch.float64) > 0).double()
    spread = (p * (1 - p) / count) ** 0.5
    assert abs(float(kept.mean()) - (1 - p)) < 5 * spread
    centred = kept - (1 - p)
    for distance in (1, 2, 3, 4, 8):  # neighbours share a draw
        together = float((centred[distance:] * centred[:-distance]).mean())
        assert abs(together) < 5 * p * (1 - p) / count**0.5
    for lane in range(4):
        assert abs(float(kept[lane::4].mean()) - (1 - p)) < 10 * spread


def test_the_expectation_is_the_value():
    torch.manual_seed(0)
    for dropped in (1, 6554, LEVELS - 1):
        kept = LEVELS - dropped
        scale = factors((200,), dropped, torch.float64).max()
        assert float(scale) in (0.0, LEVELS / kept)


def test_a_seed_decides_and_gradients_pass_where_values_do():
    values = torch.randn(50, requires_grad=True)
    outputs = []
    for _ in range(2):
        torch.manual_seed(7)
        outputs.append(quick(values, 0.3))
    assert torch.equal(*outputs)
    outputs[0].sum().backward()
    torch.testing.assert_close(values.grad * values.detach(), outputs[0].detach())


@pytest.mark.parametrize(("p", "given"), [(0.3, {"training": False}), (0.0, {}), (1.0, {}), (0.3, {"inplace": True})])
def test_other_uses_are_torch_s_own(p, given):
    torch.manual_seed(1)
    expected = F.dropout(torch.ones(40), p, **given)
    torch.manual_seed(1)
    assert torch.equal(quick(torch.ones(40), p, **given), expected)


def test_training_draws_every_mask_so_and_evaluation_none(monkeypatch):
    drawn = []

    def noted(shape, dropped, dtype):
        drawn.append(tuple(shape))
        return factors(shape, dropped, dtype)

    monkeypatch.setattr("benchmarks.quick_dropout.factors", noted)
    monkeypatch.setattr(torch.Tensor, "bernoulli_", None)  # torch's dropout would fail
    reducer = methods.create("dense", tiny_model("bert"))
    (stage,) = methods.lookup("dense").recipe_stages(None, "short")
    features = [{"index": 0, "input_ids": [1, 5, 6, 2], "label": 1, "truncated": False}]
    compute = train.Compute()
    train.train_stage(reducer, stage.but(epochs=1), features, 0, seed=0, compute=compute)
    dropouts = [one for one in reducer.modules() if isinstance(one, nn.Dropout) and one.p > 0]
    assert len(drawn) >= len(dropouts) > 4
    assert any(len(shape) == 4 for shape in drawn), "attention weights, too"
    drawn.clear()
    with quick_dropout(), torch.no_grad():
        reducer.eval()(input_ids=torch.tensor([[1, 5, 6, 2]]))
    assert not drawn


def test_recomputed_activations_have_the_masks_they_had():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 6))
    values, gradients = torch.randn(4, 6), []
    for recompute in (False, True):
        layer.zero_grad()
        torch.manual_seed(5)
        with quick_dropout():
            if recompute:
                output = torch.utils.checkpoint.checkpoint(layer, values, use_reentrant=False)
            else:
                output = layer(values)
            output.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in layer.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)
