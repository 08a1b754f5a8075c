"""ModernBERT as a backbone: norms before the blocks, turning positions, windows of local attention, gated layers."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

import methods
from methods.attention import packed_attention, padded_attention
from methods.testing import PROMISES, VARIANTS
from tests.cases import EVERY
from tests.tiny import batch_for, logits_of, make_batch, subject, tiny_model, tiny_reducer
from tests.told import Told, agree, at, run

LONG = (30, 17, 26)  # the tiny model's local layers see four tokens to either side


def distances(positions):
    return (positions.unsqueeze(1) - positions.unsqueeze(0)).abs()


def stock_on_survivors(model, ids, kept, *, renumber=False):
    """Logits of one text by the stock model's own layers: layer i on the tokens `kept[i]`, at their old positions."""
    encoder = model.model
    hidden = encoder.embeddings(ids)[0]
    for layer, rows in zip(encoder.layers, kept, strict=True):
        state, places = hidden[rows].unsqueeze(0), torch.arange(len(rows)) if renumber else rows
        far = distances(places) > (4 if layer.attention_type == "sliding_attention" else 10**6)
        mask = torch.zeros(far.shape, dtype=hidden.dtype).masked_fill(far, -torch.inf)[None, None]
        turned = encoder.rotary_emb(state, places.unsqueeze(0), layer.attention_type)
        hidden = hidden.clone()
        hidden[rows] = layer(state, attention_mask=mask, position_embeddings=turned)[0]
    return model.classifier(model.head(encoder.final_norm(hidden)[0]))


@pytest.mark.parametrize("mode", ["packed", "masked"])
def test_survivors_keep_their_positions_and_windows(build, mode):
    """Tokens on both sides of a removed stretch come no closer: the stock layers, told the old positions, agree."""
    reducer = build(Told, family="modernbert")
    ids = make_batch((30,))["input_ids"]
    kept = [torch.arange(30), torch.tensor([0, 1, 2, *range(18, 30)]), torch.tensor([0, 1, 2, 20, 27, 28])]
    reducer.plan = {
        ("before_layer", layer): lambda state: methods.Decision(keep=torch.isin(state.positions, kept[state.layer]))
        for layer in range(3)
    }
    with torch.no_grad():
        expected = stock_on_survivors(reducer.model, ids, kept)
        renumbered = stock_on_survivors(reducer.model, ids, kept, renumber=True)
    found = run(reducer, {"input_ids": ids}, mode).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert (expected - renumbered).abs().max() > 1e-3


@pytest.mark.parametrize("head", ["classification", "span_qa", "token_classification"])
@pytest.mark.parametrize("scores", [False, True])
def test_long_texts_agree_in_both_modes_and_with_the_stock_model(build, head, scores):
    """Texts longer than the window, with and without the path that reports attention received."""
    reducer = build(Told, family="modernbert", head=head)
    reducer.scored = (0, 1, 2) if scores else ()
    batch = batch_for(reducer, LONG)
    mask = batch["attention_mask"]
    output = agree(reducer, batch)
    with torch.no_grad():
        stock = reducer.model(**batch)
    torch.testing.assert_close(logits_of(output, mask), logits_of(stock, mask), rtol=1e-6, atol=1e-6)
    keep = torch.rand(3, 30, generator=torch.Generator().manual_seed(0)) < 0.5
    reducer.plan = {("after_attention", 1): lambda state: methods.Decision(keep=at(state, keep))}
    dropped = agree(reducer, batch)
    assert (dropped.trace.ffn_tokens[:, 1] < torch.tensor(LONG)).all()


def test_windows_matter():
    """The tiny model has them, and the tests' long texts reach beyond."""
    local, everywhere = tiny_model("modernbert"), tiny_model("modernbert", local_attention=1000)
    with torch.no_grad():
        a, b = (model(**make_batch(LONG)).logits for model in (local, everywhere))
        c, d = (model(**make_batch((5, 3))).logits for model in (local, everywhere))
    assert (a - b).abs().max() > 1e-3
    torch.testing.assert_close(c, d)


def test_scores_are_those_of_the_window(build):
    """What a token receives comes from queries that see it: all of it adds up to the number of queries."""
    reducer = build(Told, family="modernbert")
    reducer.scored, seen = (0, 1, 2), []
    reducer.plan = {("after_attention", 1): lambda state: seen.append((state.mode, state.scores.received))}
    batch = make_batch((30,))
    for mode in ("packed", "masked"):
        run(reducer, batch, mode)
    (_, packed), (_, masked) = seen
    torch.testing.assert_close(packed, masked[0])
    assert float(packed.sum()) == pytest.approx(30.0)


@pytest.mark.parametrize("normalisation", ["unnormalised", "epsilon"])
def test_published_normalisations_stay_inside_the_window(build, normalisation):
    """With all tokens kept, the weights that equation 4 leaves are the dense ones."""
    reducer = tiny_reducer("transkimmer", "modernbert")
    reducer.set_options(skim_attention=normalisation)
    for predictor in reducer.predictors:
        torch.nn.init.zeros_(predictor[-1].weight)
        predictor[-1].bias.data = torch.tensor([-9.0, 9.0]).double()
    batch = make_batch(LONG)
    found, expected = (
        run(reducer, batch, "masked").logits,
        run(tiny_reducer("dense", "modernbert"), batch, "masked").logits,
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_modernbert_base_by_formula():
    with torch.device("meta"):
        model = transformers.ModernBertForSequenceClassification(transformers.ModernBertConfig())
        backbone = methods.create("dense", model).backbone
    n, d, f = 128, 768, 1152
    by_hand = 22 * (4 * n * d * d + 2 * n * n * d + 3 * n * d * f) + d * d + 2 * d
    assert int(backbone.dense_macs(torch.tensor([n]))) == by_hand


@pytest.mark.parametrize("head", ["classification", "span_qa", "token_classification"])
def test_torch_counts_the_same_in_the_stock_model(head):
    """Gated feed-forward: three matrices; local layers are computed, and charged, over all pairs."""
    model = tiny_model("modernbert", head, attn_implementation="eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**make_batch((30,)))
    assert counter.get_total_flops() == 2 * int(methods.create("dense", model).backbone.dense_macs(torch.tensor([30])))


@pytest.mark.parametrize("mode", ["packed", "masked"])
@pytest.mark.parametrize("head", ["classification", "regression"])
def test_a_head_on_the_mean_reads_every_token_as_the_stock_model_does(mode, head):
    """The published checkpoints are configured so; pads have no part."""
    reducer = tiny_reducer("dense", "modernbert_mean", head)
    batch = batch_for(reducer, LONG, padded_to=33)
    with torch.no_grad():
        stock = reducer.model(**batch).logits
        first = tiny_model("modernbert", head)(**batch).logits
    torch.testing.assert_close(run(reducer, batch, mode).logits, stock, rtol=1e-9, atol=1e-9)
    assert (stock - first).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["packed", "masked"])
def test_the_mean_is_over_the_tokens_that_are_left(build, mode):
    reducer = build(Told, family="modernbert_mean")
    ids, kept = make_batch((12,))["input_ids"], torch.tensor([0, 3, 4, 9])
    reducer.plan["after_layer", 2] = lambda state: methods.Decision(keep=torch.isin(state.positions, kept))
    model = reducer.model
    with torch.no_grad():
        states = model.model(input_ids=ids).last_hidden_state[0]
        expected = model.classifier(model.head(states[kept].mean(dim=0)))
    torch.testing.assert_close(run(reducer, {"input_ids": ids}, mode).logits[0], expected, rtol=1e-9, atol=1e-9)


def test_the_mean_tells_gates_which_way_to_go(build):
    """The slope of a gate is that of a mean with weights: more of a token, less of the others."""
    reducer = build(Told, family="modernbert_mean").train()
    ids = make_batch((6,))["input_ids"]
    keep = torch.tensor([[True, True, False, True, False, True]])
    gate = keep.double().requires_grad_()
    seen = []
    reducer.plan["after_layer", 2] = lambda state: (
        seen.append(state.hidden.detach()) or methods.Decision(keep=keep, gate=gate)
    )
    reducer(input_ids=ids).logits.sum().backward()
    weights, model = keep.double().requires_grad_(), reducer.model
    states = model.model.final_norm(seen[0])
    mean = (states * weights.unsqueeze(-1)).sum(dim=1) / weights.sum()
    model.classifier(model.drop(model.head(mean))).sum().backward()
    torch.testing.assert_close(gate.grad[:, 1:], weights.grad[:, 1:])
    assert gate.grad[0, 2].abs() > 1e-6


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("family", VARIANTS)
def test_every_promise_is_kept_with_a_head_on_the_mean(name, family):
    """Packed = masked, neutral = dense, cost = what is executed, and the rest of the contract."""
    for promise in PROMISES.values():
        promise(subject(name, family))


@pytest.mark.parametrize("family", ["modernbert", "modernbert_mean"])
@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_off_ramps_read_what_the_head_would(family, mode):
    """Behind the final norm: the residual stream itself grows with depth and would saturate a ramp."""
    reducer, batch = tiny_reducer("deebert", family, neutral=True), make_batch((9, 9))
    seen = []
    for ramp in reducer.off_ramps:
        ramp.dense.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    run(reducer, batch, mode)
    with torch.no_grad():
        states = reducer.model.model(**batch, output_hidden_states=True).hidden_states[1:3]
        expected = [reducer.model.model.final_norm(state) for state in states]
    for found, state in zip(seen, expected, strict=True):
        text = state.mean(dim=1) if family == "modernbert_mean" else state[:, 0]
        torch.testing.assert_close(found, text, rtol=1e-9, atol=1e-9)


def test_a_summary_token_without_a_position_is_refused():
    with pytest.raises(ValueError, match="no position, which the attention of modernbert needs; set summary=False"):
        methods.create("lot", tiny_model("modernbert"))
    assert methods.create("lot", tiny_model("modernbert"), summary=False).options.summary is False


def test_hooks_and_adapters_on_stock_modules_are_called():
    reducer = tiny_reducer("dense", "modernbert")
    calls = []
    for layer in reducer.model.model.layers:
        for module in (layer.attn.Wqkv, layer.attn.Wo, layer.attn_norm, layer.mlp, layer.mlp_norm):
            module.register_forward_hook(lambda m, a, out: calls.append(type(m).__name__))
    run(reducer, make_batch((5,)), "packed")
    assert len(calls) == 15


@pytest.mark.parametrize("scores", [False, True])
def test_padded_attention_sees_the_same_windows(scores):
    """The path of devices on which one launch is cheaper than many, run here on the CPU."""
    lengths, window = [9, 4, 1, 7], 2
    query, key, value = torch.randn(3, sum(lengths), 2, 8, dtype=torch.float64)
    places = torch.cat([torch.randperm(20)[:n].sort().values for n in lengths])
    settings = {"places": places, "window": window}
    found = padded_attention(query, key, value, lengths, lengths, None, 0.0, scores, **settings)
    expected = packed_attention(query, key, value, lengths, lengths, scores=scores, **settings)
    for a, b in zip(found[: 3 if scores else 1], expected, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    everywhere = packed_attention(query, key, value, lengths, lengths)[0]
    assert (everywhere - expected[0]).abs().max() > 1e-3
