"""What the encoder offers to methods to come: ranks and thresholds on attention, soft multipliers, exits, span heads.

Proved with small private methods; both modes must give the same.
"""

from __future__ import annotations

import pytest
import torch

from methods import Decision
from tests.tiny import LENGTHS, batch_for, logits_of, make_batch, tiny_model
from tests.told import HOOKS, TIGHT, Discarding, Told, agree, at, final_states, run, table

# Thresholds and ranks on attention received --------------------------------------------------------------------------


def over_threshold(state):
    """Keep what receives a fixed share of attention: 12 is a pinned length, not the present one."""
    return Decision(keep=state.scores.received / 12 >= 0.06)


def thresholder(build, cls, head="classification"):
    reducer = build(cls, head=head)
    reducer.scored = (0, 1, 2)
    reducer.plan = {("after_attention", layer): over_threshold for layer in range(3)}
    return reducer


@pytest.mark.parametrize(("cls", "head"), [(Told, "classification"), (Told, "span_qa"), (Discarding, "classification")])
def test_thresholds_after_attention_are_the_same_in_both_modes(build, cls, head):
    reducer, batch = thresholder(build, cls, head), make_batch()
    trace = agree(reducer, batch).trace
    assert 0 < trace.ffn_tokens[:, 2].sum() < trace.ffn_tokens[:, 0].sum() < batch["attention_mask"].sum()
    assert torch.equal(trace.attention_tokens[:, 1:], trace.ffn_tokens[:, :-1])


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_thresholds_after_attention_equal_gathering_by_hand(build, mode):
    """One text with the stock model's own modules, rows really taken out between attention and feed-forward."""
    reducer, model, batch = thresholder(build, Discarding), tiny_model("bert"), make_batch((12,))
    with torch.no_grad():
        hidden, kept = model.bert.embeddings(batch["input_ids"]), []
        for layer in model.bert.encoder.layer:
            own = layer.attention.self
            query, key, value = (f(hidden).view(-1, 4, 8).transpose(0, 1) for f in (own.query, own.key, own.value))
            weights = (query @ key.transpose(1, 2) / 8**0.5).softmax(dim=-1)
            context = (weights @ value).transpose(0, 1).flatten(1).unsqueeze(0)
            keep = weights.mean(dim=0).sum(dim=0) / 12 >= 0.06
            keep[0] = True
            hidden = layer.attention.output(context, hidden)[:, keep]
            hidden = layer.output(layer.intermediate(hidden), hidden)
            kept.append(int(keep.sum()))
        expected = model.classifier(model.bert.pooler(hidden))
    output = run(reducer, batch, mode)
    assert output.trace.ffn_tokens.tolist() == [kept] and 1 < kept[2] < kept[0] < 12
    torch.testing.assert_close(output.logits, expected, **TIGHT)


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_only_live_tokens_vote_and_are_voted_for(build, mode):
    """What a text's tokens receive adds up to its live query rows; dead tokens and pads get exactly 0."""
    reducer, batch, sums = thresholder(build, Told), make_batch(), []

    def watch(state):
        received = state.scores.received
        sums.append((state.sum(received), state.counts(), received[~state.live]))
        return over_threshold(state)

    reducer.plan = {("after_attention", layer): watch for layer in range(3)}
    run(reducer, batch, mode)
    for received, counts, dead in sums:
        torch.testing.assert_close(received, counts.double(), **TIGHT)
        assert (dead == 0).all()
    assert sums[2][1].sum() < sums[0][1].sum()


def most_attended(share):
    def answer(state):
        received = state.scores.received.masked_fill(state.first, torch.inf)
        wanted = (state.counts() * share).ceil().long()
        return Decision(keep=state.rank(received) < state.expand(wanted))

    return answer


@pytest.mark.parametrize("head", ["classification", "span_qa"])
def test_decisions_before_a_layer_from_the_previous_layers_scores(build, head):
    reducer, batch, seen = build(head=head), make_batch(), []
    reducer.scored = (0, 1)
    reducer.plan = {("before_layer", layer): most_attended(0.6) for layer in (1, 2)}
    reducer.plan["before_layer", 0] = lambda state: seen.append(state.scores)
    trace = agree(reducer, batch).trace
    assert seen == [None, None]
    expected = [[n, -(-6 * n // 10), -(-6 * -(-6 * n // 10) // 10)] for n in LENGTHS]
    assert trace.ffn_tokens.tolist() == expected


def test_before_a_layer_or_after_the_attention_before_it_survivors_are_the_same(build):
    """The feed-forward block works token by token, so only its cost differs."""
    early, late, batch = build(), build(), make_batch()
    early.scored = late.scored = (1,)
    early.plan["after_attention", 1] = late.plan["before_layer", 2] = most_attended(0.5)
    a, b = agree(early, batch), agree(late, batch)
    assert torch.equal(a.trace.keep_masks[:, 2], b.trace.keep_masks[:, 2])
    torch.testing.assert_close(a.logits, b.logits, **TIGHT)
    assert (a.trace.ffn_tokens[:, 1] <= b.trace.ffn_tokens[:, 1]).all()


# Soft multipliers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["classification", "span_qa"])
@pytest.mark.parametrize("hook", HOOKS)
def test_soft_multipliers_are_the_same_in_both_modes_with_gradient(build, hook, head):
    reducer, batch, gradients = build(head=head), make_batch(), []
    keeps = table(len(LENGTHS), 12, share=0.8)
    for mode in ("packed", "masked"):
        scale = (torch.arange(60.0).view(5, 12).cos().double() * 0.4 + 0.6).requires_grad_()
        for layer in range(3):
            reducer.plan[hook, layer] = lambda state, scale=scale: Decision(scale=at(state, scale))
        reducer.plan["before_layer", 2] = lambda state: Decision(keep=at(state, keeps))
        with reducer.mode(mode):
            output = reducer(**batch)
        logits_of(output, batch["attention_mask"]).square().sum().backward()
        gradients.append(scale.grad)
    agree(reducer, batch)
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)
    assert (gradients[0][:, 0] != 0).all() and (gradients[0] * ~batch["attention_mask"].bool() == 0).all()


@pytest.mark.parametrize("mode", ["masked", "packed"])
@pytest.mark.parametrize("hook", HOOKS)
def test_soft_multipliers_equal_the_same_by_hand(build, hook, mode):
    reducer, model, batch = build(), tiny_model("bert"), make_batch((9,))
    scale = torch.linspace(0.2, 1.0, 9).double().unsqueeze(0)
    reducer.plan[hook, 1] = lambda state: Decision(scale=at(state, scale))
    with torch.no_grad():
        factors = {name: scale.unsqueeze(-1) if name == hook else 1.0 for name in HOOKS}
        first, second, third = model.bert.encoder.layer
        hidden = first(model.bert.embeddings(batch["input_ids"])) * factors["before_layer"]
        hidden = second.attention(hidden)[0] * factors["after_attention"]
        hidden = second.output(second.intermediate(hidden), hidden) * factors["after_layer"]
        expected = model.classifier(model.bert.pooler(third(hidden)))
    torch.testing.assert_close(run(reducer, batch, mode).logits, expected, **TIGHT)


@pytest.mark.parametrize("hook", HOOKS)
def test_scaling_and_stopping_in_one_decision(build, hook):
    """Dropped tokens (and, before a layer, leaping ones) have the same last state in both modes."""
    reducer, batch = build(head="span_qa"), make_batch()
    keeps, leaps = table(len(LENGTHS), 12, share=0.8), table(len(LENGTHS), 12, share=0.3, seed=1)
    scale = torch.linspace(0.5, 1.0, 60).view(5, 12).double()
    reducer.plan[hook, 0] = lambda state: Decision(scale=at(state, scale), keep=at(state, keeps))
    reducer.plan["before_layer", 1] = lambda state: Decision(scale=at(state, scale), leap=at(state, leaps))
    agree(reducer, batch)


# Exits ---------------------------------------------------------------------------------------------------------------


def exiting(reducer, exit_at, keep=None):
    """Leave after layer `exit_at[b]` with logits that name the layer; optionally drop tokens in the same decision."""

    def answer(state):
        logits = reducer.backbone.classify(state.read(reducer.backbone)) + state.layer
        paid = torch.full_like(state.sequences, 10)
        keeps = None if keep is None else at(state, keep)
        leave = torch.tensor(exit_at)[state.sequences] == state.layer
        return Decision(exit=leave, logits=logits, overhead_macs=paid, keep=keeps)

    return answer


@pytest.mark.parametrize("together", [False, True], ids=["apart", "one_decision"])
def test_texts_exit_while_tokens_are_dropped(build, together):
    """Texts 0 and 3 leave after the first layer, 2 and 4 after the second; each gives what it gives alone."""
    reducer, batch, exit_at = build(), make_batch(), [0, 9, 1, 0, 1]
    keeps = table(len(LENGTHS), 12, share=0.7)
    plan = {("after_layer", layer): exiting(reducer, exit_at, keeps if together else None) for layer in range(3)}
    if not together:
        plan |= {("before_layer", layer): lambda state: Decision(keep=at(state, keeps)) for layer in (1, 2)}
    reducer.plan = plan
    output = agree(reducer, batch)
    trace = output.trace
    assert trace.exit_layers.tolist() == [0, 2, 1, 0, 1]
    assert trace.exited.tolist() == [True, False, True, True, True]
    assert (trace.ffn_tokens > 0).sum(dim=1).tolist() == [1, 3, 2, 1, 2]
    assert trace.overhead_macs.tolist() == [10, 30, 20, 10, 20]
    for row, length in enumerate(LENGTHS):
        single = build()
        single.plan = {
            ("after_layer", layer): exiting(single, [exit_at[row]], keeps[row : row + 1] if together else None)
            for layer in range(3)
        }
        if not together:
            one = keeps[row : row + 1]
            for layer in (1, 2):
                single.plan["before_layer", layer] = lambda state, one=one: Decision(keep=at(state, one))
        torch.testing.assert_close(agree(single, make_batch((length,))).logits[0], output.logits[row], **TIGHT)


@pytest.mark.parametrize("layer", [0, 2])
def test_every_text_exits_at_once(build, layer):
    """The batch is then empty and no further layer runs; after the last layer, the model's own head does not either."""
    reducer, batch, calls = build(), make_batch(), []
    reducer.plan["after_layer", layer] = exiting(reducer, [layer] * 5)
    for module in (*reducer.backbone.layers, reducer.model.bert.pooler):
        part = getattr(module, "intermediate", module)
        part.register_forward_hook(lambda module, arguments, out: calls.append(type(module).__name__))
    output = run(reducer, batch, "packed")
    assert calls == ["BertIntermediate"] * (layer + 1) + ["BertPooler"]  # the pooler: the fake's own off-ramp
    trace = agree(reducer, batch).trace
    assert trace.exited.all() and trace.exit_layers.tolist() == [layer] * 5
    assert (trace.ffn_tokens[:, layer + 1 :] == 0).all()
    model = tiny_model("bert")
    with torch.no_grad():
        first = model(**batch, output_hidden_states=True).hidden_states[layer + 1]
        torch.testing.assert_close(output.logits, model.classifier(model.bert.pooler(first)) + layer, **TIGHT)


# Span heads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_forwarded_token_reaches_the_span_head_as_it_stopped(build, hook, layer, family):
    """With the stock model's state before the layer it did not finish (or after the one it did), in input order."""
    reducer = build(head="span_qa", family=family)
    batch = batch_for(reducer)
    keeps = table(len(LENGTHS), 12)
    reducer.plan[hook, layer] = lambda state: Decision(keep=at(state, keeps))
    dropped = batch["attention_mask"].bool() & ~keeps
    dropped[:, 0] = False
    model = tiny_model(family, "span_qa")
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
        expected = model.qa_outputs(states[layer + (hook == "after_layer")])
    for mode in ("packed", "masked"):
        output = run(reducer, batch, mode)
        spans = torch.stack((output.start_logits, output.end_logits), dim=-1)
        torch.testing.assert_close(spans[dropped], expected[dropped], **TIGHT)
        assert (spans[~batch["attention_mask"].bool()] == torch.finfo(torch.float64).min).all()
    agree(reducer, batch)


def test_every_token_is_forwarded_however_it_stopped(build):
    """Drops at all hooks of all layers, leaps in between: both modes agree on every token's last state."""
    reducer, batch = build(head="span_qa"), make_batch((12, 9, 7, 11))
    keeps = table(3, 3, 4, 12, share=0.85)
    leaps = table(4, 12, share=0.3, seed=5)
    for layer in (0, 2):
        for i, hook in enumerate(HOOKS):
            reducer.plan[hook, layer] = lambda state, i=i: Decision(keep=at(state, keeps[state.layer, i]))
    reducer.plan["before_layer", 1] = lambda state: Decision(leap=at(state, leaps))
    reducer.plan["after_layer", 1] = lambda state: Decision(keep=at(state, keeps[1, 2]))
    agree(reducer, batch)
    packed, masked = (final_states(reducer, batch, mode) for mode in ("packed", "masked"))
    torch.testing.assert_close(packed, masked, **TIGHT)
