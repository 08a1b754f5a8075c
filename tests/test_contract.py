"""Every promise of the interface, for every method, backbone and head."""

from __future__ import annotations

import pytest
import torch

import methods
from methods.testing import PROMISES
from tests.cases import CASES, EVERY
from tests.tiny import FAMILIES, HEADS, batch_for, subject, tiny_model, tiny_reducer


def combinations() -> list[tuple[str, str, str]]:
    """Every method, backbone and head that the method's traits do not refuse with a reason."""
    return [
        (name, family, head)
        for name in EVERY
        for family in FAMILIES
        for head in HEADS
        if head not in methods.lookup(name).traits.unsupported
    ]


every = pytest.mark.parametrize(("name", "family", "head"), combinations())


def test_cases_cover_every_method():
    missing = set(methods.available()) ^ set(CASES)
    assert not missing, f"add {sorted(missing)} to tests/cases.py (or take it out)"


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("head", HEADS)
def test_unsupported_heads_are_refused_with_the_reason(name, head):
    reason = methods.lookup(name).traits.unsupported.get(head)
    model = tiny_model("bert", head)
    if reason is None:
        assert methods.create(name, model, **EVERY[name].options).backbone.head == head
    else:
        with pytest.raises(ValueError, match="does not support") as caught:
            methods.create(name, model, **EVERY[name].options)
        assert reason in str(caught.value)


@every
@pytest.mark.parametrize("promise", PROMISES)
def test_promise_is_kept(promise, name, family, head):
    PROMISES[promise](subject(name, family, head))


@pytest.mark.parametrize("name", EVERY)
def test_float32_error_is_near_the_dense_models(name):
    """Relative tolerance: against float64, at most 3 times the dense model's own float32 error."""
    batch = batch_for(tiny_reducer(name), (12, 7, 9))
    errors = {}
    for which in ("dense", name):
        reducer = tiny_reducer(which)
        with torch.no_grad():
            exact = reducer(**batch).logits
            rounded = reducer.float()(**batch).logits
        errors[which] = (exact - rounded.double()).abs().max()
    assert errors[name] <= 3 * errors["dense"] + 1e-6


@pytest.mark.parametrize("name", EVERY)
def test_training_runs_masked_and_evaluation_packed(name):
    reducer = tiny_reducer(name)
    assert reducer.run_mode == "packed"
    assert reducer.train().run_mode == "masked"
    with reducer.mode("packed"):
        assert reducer.run_mode == "packed"
    assert reducer.run_mode == "masked"
