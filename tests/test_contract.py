"""Every promise of the interface, for every method, backbone and head."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import methods
from tests.cases import CASES, EVERY
from tests.tiny import (
    FAMILIES,
    HEADS,
    LENGTHS,
    TOKEN_HEADS,
    batch_for,
    in_own_memory,
    labels_for,
    logits_of,
    tiny_model,
    tiny_reducer,
)

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


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


def sdpa_flops(query, key, value, *args, out_shape=None, **kwargs) -> int:
    """FLOPs of CPU attention, which torch's counter does not know."""
    from torch.utils.flop_counter import sdpa_flop_count

    return sdpa_flop_count(query, key, value)


def executed_macs(reducer: methods.TokenReducer, batch: dict[str, torch.Tensor]) -> tuple[int, methods.Trace]:
    """MACs that torch counts in a packed pass, and the pass's trace."""
    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flops}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        output = reducer(**batch)
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2, output.trace


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
@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_neutral_equals_dense(name, family, head, mode):
    reducer = tiny_reducer(name, family, head, neutral=True)
    batch = batch_for(reducer)
    with torch.no_grad(), reducer.mode(mode):
        stock = tiny_model(family, head)(**batch)
        output = reducer(**batch)
    mask = batch["attention_mask"]
    torch.testing.assert_close(logits_of(output, mask), logits_of(stock, mask), **TIGHT)
    assert torch.equal(output.trace.ffn_tokens, mask.sum(dim=1, keepdim=True).expand(-1, 3))


@every
def test_packed_equals_masked(name, family, head):
    reducer = tiny_reducer(name, family, head)
    batch = batch_for(reducer)
    with torch.no_grad():
        packed = reducer(**batch)
        with reducer.mode("masked"):
            masked = reducer(**batch)
    mask = batch["attention_mask"]
    torch.testing.assert_close(logits_of(packed, mask), logits_of(masked, mask), **TIGHT)
    for field in (
        "attention_tokens",
        "attention_pairs",
        "ffn_tokens",
        "exit_layers",
        "exited",
        "overhead_macs",
        "keep_masks",
    ):
        assert torch.equal(getattr(packed.trace, field), getattr(masked.trace, field)), field


@pytest.mark.parametrize(("name", "family", "head"), [case for case in combinations() if case[0] != "dense"])
def test_the_case_really_reduces(name, family, head):
    reducer = tiny_reducer(name, family, head)
    batch = batch_for(reducer)
    with torch.no_grad():
        output = reducer(**batch)
    real, computed = batch["attention_mask"].sum(), output.trace.ffn_tokens.sum()
    assert 0 < computed == 3 * real if EVERY[name].computes_all else 0 < computed < 3 * real
    assert (reducer.macs(output.trace) - output.trace.overhead_macs).sum() < reducer.backbone.dense_macs(
        batch["attention_mask"].sum(dim=1)
    ).sum()
    stock = tiny_reducer("dense", family, head)
    with torch.no_grad():
        dense = stock(**batch)
    assert not torch.allclose(
        logits_of(output, batch["attention_mask"]), logits_of(dense, batch["attention_mask"]), rtol=1e-3, atol=1e-3
    )


@every
def test_padding_changes_nothing(name, family, head):
    reducer = tiny_reducer(name, family, head)
    narrow, wide = batch_for(reducer), batch_for(reducer, padded_to=20)
    with torch.no_grad():
        for mode in ("packed", "masked"):
            with reducer.mode(mode):
                a, b = reducer(**narrow), reducer(**wide)
            mask = narrow["attention_mask"]
            wide_logits = logits_of(b, wide["attention_mask"])
            wide_logits = wide_logits[:, : mask.shape[1]] if head in TOKEN_HEADS else wide_logits
            torch.testing.assert_close(logits_of(a, mask), wide_logits, **TIGHT)
            assert torch.equal(a.trace.keep_masks, b.trace.keep_masks[..., : mask.shape[1]])
            assert not b.trace.keep_masks[..., mask.shape[1] :].any()


@every
def test_batch_mates_change_nothing(name, family, head):
    reducer = tiny_reducer(name, family, head)
    batch = batch_for(reducer)
    with torch.no_grad():
        together = reducer(**batch)
        for row, length in enumerate(LENGTHS):
            single = batch_for(reducer, (length,))
            alone = reducer(**single)
            joint = logits_of(together, batch["attention_mask"])[row]
            joint = joint[:length] if head in TOKEN_HEADS else joint
            torch.testing.assert_close(logits_of(alone, single["attention_mask"])[0], joint, **TIGHT)
            assert torch.equal(alone.trace.keep_masks[0], together.trace.keep_masks[row][:, :length])
            assert torch.equal(reducer.macs(alone.trace)[0], reducer.macs(together.trace)[row])


@every
def test_first_token_stays_and_kept_tokens_shrink(name, family, head):
    reducer = tiny_reducer(name, family, head)
    with torch.no_grad():
        trace = reducer(**batch_for(reducer)).trace
    ran = trace.ffn_tokens > 0
    assert torch.equal(trace.keep_masks[..., 0], ran)
    assert torch.equal(trace.keep_masks.sum(dim=-1), trace.ffn_tokens)
    if not EVERY[name].unnested:
        assert not (trace.keep_masks[:, 1:] & ~trace.keep_masks[:, :-1]).any()


@every
def test_macs_equal_what_was_executed(name, family, head):
    reducer = tiny_reducer(name, family, head)
    executed, trace = executed_macs(reducer, batch_for(reducer))
    assert int(reducer.macs(trace).sum()) == executed


@every
def test_feed_forward_sees_exactly_the_surviving_rows(name, family, head):
    reducer = tiny_reducer(name, family, head)
    rows: list[int] = []
    first_linear = {"distilbert": "ffn.lin1", "albert": "ffn"}.get(family, "intermediate.dense")
    layers = {id(layer): layer for layer in reducer.backbone.layers}.values()  # ALBERT repeats one layer
    hooks = [
        layer.get_submodule(first_linear).register_forward_hook(lambda m, args, out: rows.append(args[0].shape[-2]))
        for layer in layers
    ]
    lengths = tuple(1 + 5 * i % 13 for i in range(32))
    with torch.no_grad():
        trace = reducer(**batch_for(reducer, lengths)).trace
    for hook in hooks:
        hook.remove()
    survivors = trace.ffn_tokens.sum(dim=0)
    assert rows == survivors[survivors > 0].tolist()


@every
def test_gradients_reach_every_part(name, family, head):
    reducer = tiny_reducer(name, family, head).train()
    batch = batch_for(reducer, (9, 8, 7, 10, 12))
    torch.manual_seed(3)
    output = reducer(**batch, **labels_for(reducer, batch))
    assert output.loss.isfinite()
    torch.testing.assert_close(output.loss, torch.stack([t.float() for t in output.losses.values()]).sum())
    output.loss.backward()
    without = [n for n, p in reducer.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    allowed = ("pooler",) if head in TOKEN_HEADS else ()
    assert [n for n in without if not any(part in n for part in allowed)] == []


@every
def test_save_and_load_give_identical_logits(name, family, head, tmp_path):
    reducer = tiny_reducer(name, family, head)
    batch = batch_for(reducer)
    reducer.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    loaded = methods.load(tmp_path).eval()
    assert type(loaded) is type(reducer) and loaded.options == reducer.options
    weights, read = reducer.state_dict(), loaded.state_dict()
    assert weights.keys() == read.keys() and all(torch.equal(weights[name], read[name]) for name in weights)
    with torch.no_grad():
        a, b = (in_own_memory(model)(**batch) for model in (reducer, loaded))
    assert torch.equal(logits_of(a, batch["attention_mask"]), logits_of(b, batch["attention_mask"]))


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
def test_evaluation_is_deterministic(name):
    reducer = tiny_reducer(name)
    batch = batch_for(reducer)
    with torch.no_grad():
        assert torch.equal(reducer(**batch).logits, reducer(**batch).logits)


@pytest.mark.parametrize("name", EVERY)
def test_training_runs_masked_and_evaluation_packed(name):
    reducer = tiny_reducer(name)
    assert reducer.run_mode == "packed"
    assert reducer.train().run_mode == "masked"
    with reducer.mode("packed"):
        assert reducer.run_mode == "packed"
    assert reducer.run_mode == "masked"


@pytest.mark.parametrize("name", EVERY)
def test_weights_are_those_of_the_model_given(name):
    model = tiny_model("bert")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    reducer = methods.create(name, model, **EVERY[name].options)
    assert reducer.model is model
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
