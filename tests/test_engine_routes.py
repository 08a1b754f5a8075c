"""What the encoder offers to methods to come: tokens that leap over a layer, attention inside segments.

Both modes must give the same, and each ability must equal a computation by hand with the stock model's own layers.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from methods import Decision
from methods.testing.promises import executed_macs
from tests.tiny import FAMILIES, LENGTHS, batch_for, make_batch, tiny_model
from tests.told import TIGHT, agree, at, final_states, run, stock_layers, table

# Leaping: tokens skip one layer and are back at the next ------------------------------------------------------------


def leaping(leaps, summary="none"):
    """Leap where `leaps` (batch, seq_len) says; the summary is the mean of leaping tokens and [CLS]."""

    def answer(state):
        leap = at(state, leaps) & ~state.first
        if summary == "none":
            return Decision(leap=leap)
        members = (leap | state.first).to(state.hidden.dtype).unsqueeze(-1)
        mean = state.sum(state.hidden * members) / state.sum(members)
        return Decision(leap=leap, summary=mean, summary_bias=1.0 if summary == "biased" else 0.0)

    return answer


def leaper(build, summary, head="classification", family="bert"):
    """A reducer that leaps over half of the tokens in each layer, and the (layers, batch, seq_len) leaps."""
    reducer = build(family=family, head=head)
    leaps = table(3, len(LENGTHS), max(LENGTHS))
    reducer.plan = {("before_layer", layer): leaping(leaps[layer], summary) for layer in range(3)}
    return reducer, leaps


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["classification", "span_qa"])
@pytest.mark.parametrize("summary", ["none", "plain", "biased"])
def test_leaping_is_the_same_in_both_modes(build, summary, head, family):
    reducer, leaps = leaper(build, summary, head, family)
    batch = batch_for(reducer)
    if reducer.backbone.is_rotary and summary != "none":
        for mode in ("masked", "packed"):
            with pytest.raises(ValueError, match="modernbert needs a position for every token, summaries too"):
                run(reducer, batch, mode)
        return
    trace = agree(reducer, batch).trace
    expected = batch["attention_mask"].bool() & ~leaps
    expected[..., 0] = True
    assert torch.equal(trace.keep_masks, expected.transpose(0, 1))
    tokens = trace.attention_tokens
    assert torch.equal(trace.ffn_tokens, tokens)
    assert torch.equal(trace.attention_pairs, tokens * (tokens + (summary != "none")))


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_a_leaping_token_is_bit_identical_across_the_layer(build, mode):
    reducer, leaps = leaper(build, "plain", "span_qa")
    batch, states = batch_for(reducer), []
    for layer, answer in enumerate(list(reducer.plan.values())):

        def watch(state, answer=answer):
            states.append((state.hidden, state.expand(state.sequences), state.positions))
            return answer(state)

        reducer.plan["before_layer", layer] = watch
    final = final_states(reducer, batch, mode)
    for layer, (before, rows, positions) in enumerate(states):
        after = final[rows, positions] if layer == 2 else states[layer + 1][0]
        still = leaps[layer][rows, positions] & (positions > 0) & batch["attention_mask"].bool()[rows, positions]
        assert still.any() and torch.equal(before[still], after[still])
        assert not torch.equal(before[~still], after[~still])


@pytest.mark.parametrize("summary", ["none", "plain", "biased"])
@pytest.mark.parametrize("leaps", [(1, 2, 3, 4, 5), (2, 4)], ids=["all", "some"])
@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_leaping_equals_stock_layers_by_hand(build, mode, leaps, summary):
    """Forced masks (0, 1): the tokens leap over the first layer and are processed, in their places, by the second."""
    reducer, batch = build(), make_batch((6,))
    leap = torch.zeros(1, 6, dtype=torch.bool)
    leap[:, list(leaps)] = True
    reducer.plan["before_layer", 0] = leaping(leap, summary)
    model = tiny_model("bert")
    with torch.no_grad():
        hidden = model.bert.embeddings(batch["input_ids"])
        run_there = [i for i in range(6) if i not in leaps]
        block = hidden[:, run_there]
        bias = torch.zeros(1, 1, 1, len(run_there) + (summary != "none"), dtype=torch.float64)
        if summary != "none":
            block = torch.cat((block, hidden[:, [0, *leaps]].mean(dim=1, keepdim=True)), dim=1)
            bias[..., -1] = float(summary == "biased")
        hidden[:, run_there] = model.bert.encoder.layer[0](block, attention_mask=bias)[:, : len(run_there)]
        for layer in model.bert.encoder.layer[1:]:
            hidden = layer(hidden)
        expected = model.classifier(model.bert.pooler(hidden))
    output = run(reducer, batch, mode)
    torch.testing.assert_close(output.logits, expected, **TIGHT)
    assert output.trace.ffn_tokens.tolist() == [[len(run_there), 6, 6]]


def test_a_leaping_token_reaches_others_only_through_the_summary(build):
    """Change the state of leaping tokens: with no summary nothing else moves in that layer."""
    for summary, moved in (("none", False), ("plain", True)):
        reducer, leaps = leaper(build, summary, "span_qa")
        batch, plain = batch_for(reducer), reducer.plan["before_layer", 2]
        others = batch["attention_mask"].bool() & ~leaps[2]
        before = final_states(reducer, batch, "packed")

        def disturbed(state, plain=plain, leaps=leaps[2]):
            state.hidden = state.hidden + (at(state, leaps) & ~state.first).unsqueeze(-1)
            return plain(state)

        reducer.plan["before_layer", 2] = disturbed
        after = final_states(reducer, batch, "packed")
        assert torch.equal(before[others], after[others]) is not moved


@pytest.mark.parametrize("summary", ["none", "biased"])
def test_the_gate_of_a_leap_holds_for_its_layer_only(build, summary):
    """It carries a gradient, changes no value, and the token is computed again in the next layer."""
    reducer, leaps = leaper(build, summary)
    batch = batch_for(reducer)
    gates = [(~leaps[layer]).double().requires_grad_() for layer in range(3)]
    expected = run(reducer, batch, "masked").logits
    for layer in range(3):
        leap = leaping(leaps[layer], summary)
        reducer.plan["before_layer", layer] = lambda state, leap=leap, i=layer: replace(leap(state), gate=gates[i])
    with reducer.mode("masked"):
        logits = reducer(**batch).logits
    torch.testing.assert_close(logits, expected, **TIGHT)
    logits.square().sum().backward()
    for layer, gate in enumerate(gates):
        assert gate.grad.isfinite().all()
        assert (gate.grad[leaps[layer] & batch["attention_mask"].bool()] != 0).any()


def test_the_summary_token_is_charged_for(build):
    """Its key and value are computed, so they count: 2 d^2 and one key more for every query."""
    reducer, _ = leaper(build, "biased")
    executed, trace = executed_macs(reducer, batch_for(reducer))
    assert int(reducer.macs(trace).sum()) == executed


@pytest.mark.parametrize("summary", ["none", "plain", "biased"])
def test_scores_where_tokens_leap(build, summary):
    """Only tokens that run vote; what the summary token receives is not theirs."""
    reducer, _ = leaper(build, summary)
    reducer.scored, sums = (1,), []

    def watch(state):
        sums.append(state.sum(state.scores.received))
        return Decision(scale=state.scores.received.clamp(max=1))

    reducer.plan["after_attention", 1] = watch
    trace = agree(reducer, batch_for(reducer)).trace
    rows = trace.attention_tokens[:, 1].double()
    for received in sums:
        if summary == "none":
            torch.testing.assert_close(received, rows, **TIGHT)
        else:
            assert (received < rows).all()


def test_dropping_in_a_layer_that_others_leap_over_is_refused(build):
    """Between attention and feed-forward; in both modes, so that training finds it before inference does."""
    reducer, _ = leaper(build, "none")
    reducer.plan["after_attention", 1] = lambda state: Decision(keep=state.positions < 3)
    for mode in ("packed", "masked"):
        with pytest.raises(ValueError, match="cannot be dropped in a layer that others leap over"):
            run(reducer, batch_for(reducer), mode)


def test_dropping_and_leaping_in_one_decision(build):
    reducer, leaps = leaper(build, "none", "span_qa")
    keeps = table(len(LENGTHS), max(LENGTHS), share=0.7, seed=1)
    reducer.plan["before_layer", 1] = lambda state: Decision(keep=at(state, keeps), leap=at(state, leaps[1]))
    trace = agree(reducer, batch_for(reducer)).trace
    assert not (trace.keep_masks[:, 1, 1:] & (leaps[1] | ~keeps)[:, 1:]).any()
    assert not (trace.keep_masks[:, 2, 1:] & ~keeps[:, 1:]).any()


# Segments: attention stays inside parts of the text -----------------------------------------------------------------


def in_segments(split=4):
    return lambda state: Decision(segments=(state.positions >= split).long())


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_segments_equal_a_block_diagonal_mask(build, mode):
    """Question and passage apart in the two lower layers, together in the last."""
    reducer, batch = build(), make_batch()
    reducer.plan = {("before_layer", layer): in_segments() for layer in (0, 1)}
    real = batch["attention_mask"].bool()
    same = (torch.arange(12) >= 4) == (torch.arange(12) >= 4).unsqueeze(1)
    full = real[:, None, None, :].expand(-1, 1, 12, -1)
    with torch.no_grad():
        model = tiny_model("bert")
        expected = stock_layers(model, model.bert.embeddings(batch["input_ids"]), (full & same, full & same, full))
    torch.testing.assert_close(run(reducer, batch, mode).logits, expected, **TIGHT)


@pytest.mark.parametrize("head", ["classification", "span_qa"])
def test_segments_pay_for_the_squares_of_their_lengths(build, head):
    reducer, batch = build(head=head), make_batch()
    reducer.plan = {("before_layer", layer): in_segments() for layer in (0, 1)}
    trace = agree(reducer, batch).trace
    squares = [min(n, 4) ** 2 + max(n - 4, 0) ** 2 for n in LENGTHS]
    assert trace.attention_pairs.tolist() == [[s, s, n * n] for s, n in zip(squares, LENGTHS, strict=True)]
    assert trace.attention_tokens.tolist() == [[n] * 3 for n in LENGTHS]
    executed, trace = executed_macs(reducer, batch)
    assert int(reducer.macs(trace).sum()) == executed


def test_segments_with_scores_and_drops(build):
    """Some texts are shorter than the first segment: pads of the second must not spoil anything."""
    reducer, batch = build(head="span_qa"), make_batch()
    reducer.scored = (0, 1)
    keeps = table(len(LENGTHS), 12, share=0.7)
    for layer in (0, 1):
        reducer.plan["before_layer", layer] = in_segments()
        reducer.plan["after_attention", layer] = lambda state: Decision(
            keep=at(state, keeps), scale=state.scores.received.clamp(max=2)
        )
    agree(reducer, batch)


def test_dropping_and_segments_in_one_decision(build):
    reducer, batch = build(), make_batch()
    keeps = table(len(LENGTHS), 12, share=0.7)
    reducer.plan["before_layer", 1] = lambda state: Decision(
        keep=at(state, keeps), segments=(state.positions >= 4).long()
    )
    agree(reducer, batch)


def test_segments_train(build):
    """Gradients stay finite although some pads find no key in their segment."""
    reducer, batch = build(), make_batch()
    reducer.plan = {("before_layer", layer): in_segments() for layer in (0, 1)}
    reducer.train()(**batch, labels=torch.arange(5) % 3).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in reducer.parameters())
