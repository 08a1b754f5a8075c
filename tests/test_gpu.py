"""The contract on a CUDA device; skipped where there is none."""

from __future__ import annotations

import warnings

import pytest
import torch

from methods.attention import packed_attention, padded_attention
from tests.cases import CASES, EVERY
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_variable_length_attention_equals_the_padded_path(dtype):
    """The kernel against its reference, to the precision of its numbers."""
    lengths = [128, 3, 64, 64, 17, 1]
    query, key, value = torch.randn(3, sum(lengths), 4, 64, device="cuda", dtype=dtype)
    context, *_ = packed_attention(query, key, value, lengths, lengths)
    exact = (x.double() for x in (query, key, value))
    expected, *_ = padded_attention(*exact, lengths, lengths, None, 0.0, False)
    torch.testing.assert_close(context.double(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", ["transkimmer", "power_bert", "ltp", "deebert"])
def test_a_layer_waits_for_the_device_once_at_most(name):
    """However many layers remove tokens: one wait for each, beside those of the batch as a whole."""
    reducer = tiny_reducer(name).float().cuda().bfloat16()
    batch = {key: value.cuda() for key, value in batch_for(reducer).items()}
    with torch.inference_mode():
        reducer(**batch)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                reducer(**batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    # Not the mode's own first warning, which only says that it is a prototype.
    waits = [str(warning.message) for warning in caught if "called a synchronizing" in str(warning.message)]
    assert len(waits) <= reducer.backbone.num_layers + 4, waits


@pytest.mark.parametrize("family", ["bert", "albert", "electra", "modernbert"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", EVERY)
def test_half_precision_runs_packed_on_cuda(name, dtype, family):
    """Under autocast, whose types mix where embeddings are narrow, and with weights in half precision."""
    reducer = tiny_reducer(name, family).float().cuda().eval()
    batch = {key: value.cuda() for key, value in batch_for(reducer).items()}
    with torch.no_grad():
        with torch.autocast("cuda", dtype=dtype):
            output = reducer(**batch)
        halved = reducer.to(dtype)(**batch)
    assert logits_of(output).isfinite().all()
    assert logits_of(halved).isfinite().all() and logits_of(halved).dtype == dtype
