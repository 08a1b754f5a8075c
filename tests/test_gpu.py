"""The contract on a CUDA device; skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from tests.cases import CASES
from tests.tiny import batch_for, labels_for, logits_of, tiny_reducer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_cuda_equals_cpu_and_packed_equals_masked(name, family):
    reducer = tiny_reducer(name, family)
    batch = batch_for(reducer)
    with torch.no_grad():
        expected = reducer(**batch)
        reducer.cuda()
        on_device = {key: value.cuda() for key, value in batch.items()}
        packed = reducer(**on_device)
        with reducer.mode("masked"):
            masked = reducer(**on_device)
    torch.testing.assert_close(logits_of(packed).cpu(), logits_of(expected), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(logits_of(packed), logits_of(masked), rtol=1e-9, atol=1e-9)
    assert torch.equal(packed.trace.keep_masks.cpu(), expected.trace.keep_masks)


@pytest.mark.parametrize("name", CASES)
def test_a_training_step_in_bfloat16_runs_on_cuda(name):
    reducer = tiny_reducer(name).float().train().cuda()
    batch = batch_for(reducer) | labels_for(reducer, batch_for(reducer))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = reducer(**{key: value.cuda() for key, value in batch.items()}).loss
    loss.backward()
    assert loss.isfinite()
