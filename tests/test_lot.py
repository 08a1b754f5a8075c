"""LoT's forward pass: routing, leaping, summary token and cost; [3] is the third invariant of the method notes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

import methods
from methods.lot import ROUTER_SIZE, Router, mean_state, routed_tokens
from methods.masked import MaskedState
from methods.packed import PackedState
from methods.state import StateOptions
from tests.tiny import logits_of, make_batch, tiny_model, tiny_reducer
from tests.told import TIGHT, agree, final_states, run, table

SUMMARIES = {
    "none": {"summary": False},
    "plain": {"summary": True, "summary_bias": 0.0},
    "biased": {"summary": True, "summary_bias": 1.0},
}
summaries = pytest.mark.parametrize("summary", SUMMARIES)
modes = pytest.mark.parametrize("mode", ["masked", "packed"])


def biased(reducer, leap, process):
    """Let every router say the same of every token: the logits `leap` and `process`."""
    for router in reducer.routers:
        torch.nn.init.zeros_(router[-1].weight)
        router[-1].bias.data = torch.tensor([leap, process], dtype=router[-1].bias.dtype)
    return reducer


class Forced(torch.nn.Module):
    """A router that lets the tokens leap that it is told, in the order in which it is asked about them."""

    macs_per_token = 0

    def __init__(self, leaps):
        super().__init__()
        self.leaps = leaps

    def forward(self, rows):
        return torch.stack((self.leaps, ~self.leaps), dim=1).to(rows.dtype)


def force(reducer, leaps, batch):
    """Route as `leaps` (layers, batch, seq_len) bool says."""
    routed = routed_tokens(batch["attention_mask"].bool())
    for layer, leap in enumerate(leaps):
        reducer.routers[layer] = Forced(leap[routed])
    return reducer


def watch(reducer):
    """Collects what `before_layer` sees and answers: (states of the tokens, their rows, their positions, decision)."""
    seen, plain = [], reducer.before_layer

    def before_layer(state):
        decision = plain(state)
        seen.append((state.hidden, state.expand(state.sequences), state.positions, decision))
        return decision

    reducer.before_layer = before_layer
    return seen


# Leaping -------------------------------------------------------------------------------------------------------------


@modes
def test_a_leaping_token_is_bit_identical_across_its_layer(mode):
    """[1] In every layer; the others change."""
    reducer, batch = tiny_reducer("lot", head="span_qa"), make_batch()
    seen = watch(reducer)
    final = final_states(reducer, batch, mode)
    for layer, (before, rows, positions, decision) in enumerate(seen):
        after = final[rows, positions] if layer == 2 else seen[layer + 1][0]
        real = batch["attention_mask"].bool()[rows, positions]
        leap = decision.leap
        assert leap.any() and not leap[positions == 0].any()
        assert torch.equal(before[leap], after[leap])
        assert (before[real & ~leap] != after[real & ~leap]).any(dim=-1).all()


@summaries
@pytest.mark.parametrize("head", ["classification", "span_qa"])
def test_masked_equals_gathered_and_scattered(summary, head):
    """[2] Logits, tokens and costs, and the last state of every token, in a batch of unequal lengths."""
    reducer, batch = tiny_reducer("lot", head=head), make_batch()
    reducer.set_options(**SUMMARIES[summary])
    trace = agree(reducer, batch).trace
    assert (trace.keep_masks[:, 1:] & ~trace.keep_masks[:, :-1]).any()  # some tokens came back
    if head == "span_qa":
        packed, masked = (final_states(reducer, batch, mode) for mode in ("packed", "masked"))
        torch.testing.assert_close(packed, masked, **TIGHT)


@modes
@summaries
def test_processing_every_token_is_the_stock_model_only_without_summary(summary, mode):
    """[3] The summary token, then a copy of [CLS], is attended to all the same."""
    reducer, batch = biased(tiny_reducer("lot"), -20.0, 20.0), make_batch()
    reducer.set_options(**SUMMARIES[summary])
    output = run(reducer, batch, mode)
    with torch.no_grad():
        difference = (output.logits - tiny_model("bert")(**batch).logits).abs().amax(dim=1)
    assert torch.equal(output.trace.ffn_tokens, batch["attention_mask"].sum(dim=1, keepdim=True).expand(-1, 3))
    alone = output.trace.input_lengths == 1  # [CLS] twice is [CLS] once
    assert (difference[alone] < 1e-9).all()
    assert ((difference[~alone] < 1e-9) == (summary == "none")).all()


@modes
def test_a_leaping_token_reaches_others_only_through_the_summary(mode):
    """[4] Without it, or with the summary as it was, nothing else moves in that layer."""
    leaps = table(3, 2, 9)
    leaps[2, :, 5] = True
    batch = make_batch((9, 7))

    def last_states(summary, disturbed=False, kept=None):
        reducer = force(tiny_reducer("lot", head="span_qa"), leaps, batch)
        reducer.set_options(summary=summary)
        plain, said = reducer.before_layer, []

        def before_layer(state):
            if disturbed and state.layer == 2:
                state.hidden = state.hidden + (state.positions == 5).unsqueeze(-1)
            said.append(plain(state))
            return replace(said[-1], summary=kept) if kept is not None and state.layer == 2 else said[-1]

        reducer.before_layer = before_layer
        states = final_states(reducer, batch, mode)
        return torch.cat((states[:, :5], states[:, 6:]), dim=1), said[2].summary

    assert torch.equal(last_states(False)[0], last_states(False, disturbed=True)[0])
    before, summary = last_states(True)
    after, moved = last_states(True, disturbed=True)
    assert not torch.equal(summary, moved) and not torch.equal(before, after)
    assert torch.equal(last_states(True, disturbed=True, kept=summary)[0], before)


@modes
@summaries
def test_a_token_leaps_and_is_then_processed_in_its_place(summary, mode):
    """[5] Masks (0, 1) for tokens 1, 2 and 4 of six, against two stock layers, their input gathered by hand."""
    model, batch = tiny_model("bert", num_hidden_layers=2), make_batch((6,))
    reducer = methods.create("lot", model, **SUMMARIES[summary]).double().eval()
    leaps = torch.zeros(2, 1, 6, dtype=torch.bool)
    leaps[0, :, [1, 2, 4]] = True
    output = run(force(reducer, leaps, batch), batch, mode)
    extra = int(summary != "none")
    with torch.no_grad():
        hidden = model.bert.embeddings(batch["input_ids"])
        for layer, there in zip(model.bert.encoder.layer, ([0, 3, 5], [0, 1, 2, 3, 4, 5]), strict=True):
            mean = hidden[:, [0, *(i for i in range(6) if i not in there)]].mean(dim=1, keepdim=True)
            block = torch.cat([hidden[:, there]] + [mean] * extra, dim=1)
            bias = torch.zeros(1, 1, 1, len(there) + extra, dtype=torch.float64)
            bias[..., len(there) :] = SUMMARIES[summary].get("summary_bias", 0.0)
            hidden[:, there] = layer(block, attention_mask=bias)[:, : len(there)]
        expected = model.classifier(model.bert.pooler(hidden))
    torch.testing.assert_close(output.logits, expected, **TIGHT)
    assert output.trace.ffn_tokens.tolist() == [[3, 6]]


def test_leaping_as_released_differs_unless_every_token_is_processed():
    """[16] The same weights and summary: refined as queries, leaping tokens tell [CLS] something else later."""
    reducer, batch = tiny_reducer("lot"), make_batch()
    outputs = {}
    for forward in ("leap", "as_released"):
        reducer.set_options(forward=forward)
        outputs[forward] = run(reducer, batch, "masked")
    difference = (outputs["leap"].logits - outputs["as_released"].logits).abs().amax(dim=1)
    assert (difference[outputs["leap"].trace.keep_ratios()[:, :-1].amin(dim=1) < 1] > 1e-6).all()
    dense = batch["attention_mask"].sum(dim=1, keepdim=True).expand(-1, 3)
    assert torch.equal(outputs["as_released"].trace.ffn_tokens, dense)  # nothing is saved, nothing is claimed
    assert reducer.run_mode == "masked"
    biased(reducer, -20.0, 20.0)
    for forward in outputs:
        reducer.set_options(forward=forward)
        outputs[forward] = run(reducer, batch, "masked")
    torch.testing.assert_close(outputs["leap"].logits, outputs["as_released"].logits, **TIGHT)


@pytest.mark.parametrize("layout", [MaskedState, PackedState])
def test_the_mean_state_of_half_precision_is_summed_in_float32(layout):
    """The count of a long text has no exact bfloat16."""
    reducer = methods.create("lot", tiny_model("bert", max_position_embeddings=600).bfloat16())
    state = layout(reducer.backbone, reducer.check_inputs(**make_batch((513, 300))), StateOptions())
    state.hidden = torch.ones_like(state.hidden)
    means = mean_state(state, state.live)
    assert means.dtype == torch.bfloat16 and (means == 1).all()


# Routing -------------------------------------------------------------------------------------------------------------


def test_evaluation_draws_only_if_asked():
    """[7] Argmax repeats itself; the public code samples at evaluation too."""
    reducer, batch = biased(tiny_reducer("lot"), 0.0, 0.0), make_batch((20,) * 8)
    first, second = run(reducer, batch, "packed"), run(reducer, batch, "packed")
    assert torch.equal(first.logits, second.logits)
    assert (first.trace.ffn_tokens == 1).all()  # undecided tokens leap
    reducer.set_options(sample_in_eval=True)
    first, second = run(reducer, batch, "packed"), run(reducer, batch, "packed")
    assert not torch.equal(first.logits, second.logits)
    assert not torch.equal(first.trace.keep_masks, second.trace.keep_masks)


def test_fresh_routers_process_nearly_everything():
    """[8] 13 draws of 768 tokens by 12 routers each."""
    torch.manual_seed(0)
    states = torch.nn.functional.layer_norm(torch.randn(12, 768, 768), (768,))
    with torch.no_grad():
        logits = torch.stack([Router(768)(row) for row in states])
        processed = torch.stack([torch.nn.functional.gumbel_softmax(logits, hard=True)[..., 1] for _ in range(13)])
    assert processed.numel() > 10_000 and processed.mean() > 0.999
    gaps = logits[..., 1] - logits[..., 0]
    assert ((gaps.mean(dim=1) - 10).abs() < 0.5).all() and (gaps > 0).all()


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("gap", [-1.0, 0.5])
def test_how_often_a_token_is_processed_is_the_sigmoid_of_the_gap(gap, temperature):
    """[8] Within three standard errors, whatever tau."""
    model = tiny_model("bert", num_hidden_layers=1).float()
    reducer = biased(methods.create("lot", model, temperature=temperature), 0.0, gap).train()
    batch, processed = make_batch((40,) * 256), 0
    torch.manual_seed(2)
    with torch.no_grad():
        for _ in range(10):
            processed += int(reducer(**batch).trace.keep_masks[:, 0, 1:].sum())
    draws, expected = 10 * 256 * 39, torch.sigmoid(torch.tensor(gap)).item()
    assert abs(processed / draws - expected) < 3 * (expected * (1 - expected) / draws) ** 0.5


def test_the_router_reads_a_tokens_state_plus_the_mean_of_the_text():
    """Section 3.1: r_j = h_j + c for all tokens but [CLS], pads left out; the mean is detached."""
    reducer, batch, read = tiny_reducer("lot").train(), make_batch((9, 4)), []
    for router in reducer.routers:
        router.register_forward_pre_hook(lambda module, arguments: read.append(arguments[0]))
    seen = watch(reducer)
    reducer(**batch)
    real = batch["attention_mask"].bool()
    for rows, (hidden, *_) in zip(read, seen, strict=True):
        means = torch.stack([hidden[b, : real[b].sum()].mean(dim=0) for b in (0, 1)])
        expected = (hidden + means.unsqueeze(1))[routed_tokens(real)]
        torch.testing.assert_close(rows, expected, **TIGHT)
    slope = torch.autograd.grad(read[1].square().sum(), seen[1][0], retain_graph=True)[0]
    assert (slope[:, 0] == 0).all() and (slope[~real] == 0).all()  # [CLS] is in the mean only


@pytest.mark.parametrize("what", ["masks", "logits"])
@pytest.mark.parametrize(
    "context",
    [
        "valid_mean",
        pytest.param("padded_mean", marks=pytest.mark.xfail(strict=True, reason="pads leak, as published (6.5)")),
    ],
)
@modes
def test_padding_changes_neither_masks_nor_logits(mode, context, what):
    """[10] From N to 2 N."""
    reducer = tiny_reducer("lot")
    reducer.set_options(router_context=context)
    narrow, wide = (run(reducer, make_batch((12, 9, 4), padded_to=n), mode) for n in (12, 24))
    if what == "masks":
        real = make_batch((12, 9, 4))["attention_mask"].bool().unsqueeze(1)
        assert torch.equal(narrow.trace.keep_masks & real, wide.trace.keep_masks[..., :12] & real)
    else:
        torch.testing.assert_close(narrow.logits, wide.logits, **TIGHT)


@pytest.mark.parametrize("head", ["classification", "span_qa"])
def test_routed_pads_are_never_keys_and_run_in_both_modes(head):
    """The padded context needs the pads' states: they are routed and computed, and packed still equals masked."""
    reducer, batch = tiny_reducer("lot", head=head), make_batch((12, 9, 4))
    reducer.set_options(router_context="padded_mean")
    trace = agree(reducer, batch).trace
    assert trace.overhead_macs.tolist() == [3 * (11 * reducer.routers[0].macs_per_token + 2 * 32 * 32)] * 3
    everything = biased(reducer, -20.0, 20.0)
    everything.set_options(summary=False)
    mask = batch["attention_mask"]
    with torch.no_grad():
        stock = tiny_model("bert", head)(**batch)
    expected = stock.logits if head != "span_qa" else torch.stack((stock.start_logits, stock.end_logits), dim=-1)
    expected = expected if head != "span_qa" else expected * mask.unsqueeze(-1)
    torch.testing.assert_close(logits_of(run(everything, batch, "packed"), mask), expected, **TIGHT)


def test_the_released_variant_runs_masked_and_differs():
    """Traits name it: sampled, refined, padded; it is charged as the dense model plus routers and summary."""
    reducer, batch = tiny_reducer("lot"), make_batch()
    honest = run(reducer, batch, "packed")
    reducer.set_options(**reducer.traits.as_released)
    assert reducer.run_mode == "masked" and reducer.options.label_softmax == "all_positions"
    with torch.no_grad():
        output = reducer(**batch)
    assert not torch.allclose(output.logits, honest.logits, atol=1e-3)
    assert (reducer.macs(output.trace) > reducer.backbone.dense_macs(output.trace.input_lengths)).all()
    with pytest.raises(ValueError, match="only mask tokens, as published code does"), reducer.mode("packed"):
        reducer(**batch)


# Cost ----------------------------------------------------------------------------------------------------------------


def base_model_macs(n, processed):
    """MACs per layer of BERT-base where `processed` of `n` tokens run, and the same of the dense model."""
    with torch.device("meta"):
        reducer = methods.create("lot", transformers.BertForSequenceClassification(transformers.BertConfig()))
    assert ROUTER_SIZE == 256 and reducer.routers[0].macs_per_token == 197_120
    trace = methods.Trace(torch.ones(1, n, dtype=torch.bool), 12)
    first = torch.tensor([0])
    for layer in range(12):
        k = torch.tensor([processed])
        trace.record_attention(layer, first, k, k * (k + 1))
        trace.record_ffn(layer, first, k, torch.arange(processed))
    trace.overhead_macs += 12 * ((n - 1) * 197_120 + 2 * 768 * 768)
    head = int(reducer.backbone.head_macs(first))
    return (int(reducer.macs(trace)) - head) // 12, (int(reducer.backbone.dense_macs(torch.tensor([n]))) - head) // 12


def test_costs_assumed_for_the_base_model_are_those_of_a_run():
    """[6] All leap: k = 1 in every layer, a key and a value of the summary, n - 1 tokens routed."""
    reducer, batch = biased(tiny_reducer("lot"), 20.0, -20.0), make_batch((9, 4))
    trace = agree(reducer, batch).trace
    assert (trace.ffn_tokens == 1).all() and (trace.attention_pairs == 2).all()
    router = 32 * 256 + 2 * 256
    assert trace.overhead_macs.tolist() == [3 * ((n - 1) * router + 2 * 32 * 32) for n in (9, 4)]


@pytest.mark.parametrize(
    ("n", "published", "ours"), [(64, 17.3, 22.2), (128, 23.8, 28.0), (256, 29.7, 32.7), (512, 35.1, 36.9)]
)
def test_speed_up_has_a_ceiling(n, published, ours):
    """[6] Only [CLS] and the summary run. The notes charge the summary as a whole token, whose own output is not used.

    We compute (and charge) its key and value alone, so ours lies higher; the difference is exactly what is left out:
    its query and output projection, its feed-forward and its own row of attention over two keys.
    """
    cost, dense = base_model_macs(n, 1)
    assert dense / cost == pytest.approx(ours, abs=0.05)
    left_out = 2 * 768 * 768 + 2 * 768 * 3072 + 2 * 2 * 768
    assert dense / (cost + left_out) == pytest.approx(published, abs=0.1)


def test_cost_constants_of_the_base_model():
    """[15] 7,079,424 MACs for one token alone, 197,120 per routed token; keeping everything costs 2 to 4 % more."""
    assert base_model_macs(1, 1)[1] == 7_079_424
    router = Router(768)
    assert router.macs_per_token == 197_120 and sum(p.numel() for p in router.parameters()) == 198_914
    for n in (64, 128, 256, 512):
        cost, dense = base_model_macs(n, n)
        assert 0.96 <= dense / cost <= 0.98


# Options -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 0.0}, "top_p must be > 0, got 0.0"),
        ({"top_p": float("nan")}, "top_p must be > 0, got nan"),
        ({"temperature": -1.0}, "temperature must be > 0, got -1.0"),
        ({"reg_weight": -0.1}, "reg_weight must be >= 0, got -0.1"),
        ({"summary_bias": float("inf")}, "summary_bias must be finite, got inf"),
        ({"forward": "skip"}, "forward must be one of leap, as_released, got 'skip'"),
        ({"router_context": "cls"}, "router_context must be one of valid_mean, padded_mean, got 'cls'"),
        ({"label_softmax": "all"}, "label_softmax must be one of valid_non_cls, all_positions, got 'all'"),
        ({"topp": 0.3}, "lot has no option 'topp'; its options: top_p, reg_weight"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        methods.create("lot", tiny_model("bert"), **options)
