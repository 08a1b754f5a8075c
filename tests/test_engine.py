"""What the encoder offers to methods that are still to come, proved with small private ones.

Both modes must give the same, and each ability must equal a computation by hand with the stock model's own layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn import functional as F

import methods
from methods import Decision, Options, TokenReducer, Traits
from methods.attention import MaskedKeys, masked_attention, packed_attention
from methods.encoder import encode
from methods.masked import straight_through
from methods.registry import register, unregister
from tests.test_contract import executed_macs
from tests.tiny import FAMILIES, LENGTHS, batch_for, logits_of, make_batch, tiny_model

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
TRACED = ("attention_tokens", "attention_pairs", "ffn_tokens", "exit_layers", "exited", "overhead_macs", "keep_masks")
HOOKS = ("before_layer", "after_attention", "after_layer")


class Told(TokenReducer):
    """Answers a hook as the test says: `plan[hook, layer]` is called with the state."""

    traits = Traits(title="Told", dropped="forwarded", learns=False)

    def build(self):
        self.plan, self.scored = {}, ()

    def needs_scores(self, layer):
        return layer in self.scored

    def _ask(self, hook, state):
        answer = self.plan.get((hook, state.layer))
        return answer(state) if answer else None

    def before_layer(self, state):
        return self._ask("before_layer", state)

    def after_attention(self, state):
        return self._ask("after_attention", state)

    def after_layer(self, state):
        return self._ask("after_layer", state)


class Discarding(Told):
    """The same, but what is dropped is lost."""

    traits = Traits(title="Discarding", dropped="discarded", learns=False, unsupported={"span_qa": "tokens are lost"})


@pytest.fixture
def build():
    """Registers a private method and puts it on a tiny model; its name is free again afterwards."""
    names = []

    def on_tiny_model(cls=Told, family="bert", head="classification", **options):
        names.append(cls.__name__.lower())
        register(names[-1])(cls)
        return methods.create(names[-1], tiny_model(family, head), **options).double().eval()

    yield on_tiny_model
    for name in names:
        unregister(name)


def at(state, table):
    """Entries of a (batch, seq_len, ...) table that belong to the state's tokens, in either mode's layout."""
    return table[state.expand(state.sequences), state.positions]


def table(*shape, share=0.5, seed=0):
    """Seeded random True and False."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def run(reducer, batch, mode):
    with torch.no_grad(), reducer.mode(mode):
        return reducer(**batch)


def agree(reducer, batch):
    """Check that both modes give the same logits and trace; returns the packed result."""
    packed, masked = (run(reducer, batch, mode) for mode in ("packed", "masked"))
    mask = batch["attention_mask"]
    torch.testing.assert_close(logits_of(packed, mask), logits_of(masked, mask), **TIGHT)
    for name in TRACED:
        assert torch.equal(getattr(packed.trace, name), getattr(masked.trace, name)), name
    return packed


def final_states(reducer, batch, mode):
    """Last state of every token of a span model, (batch, seq_len, hidden_size), 0 on pads."""
    reducer.model.qa_outputs = torch.nn.Identity()
    with torch.no_grad():
        state = encode(reducer, reducer.check_inputs(**batch), mode, reducer.state_options())
        return state.outputs(reducer.backbone) * batch["attention_mask"].unsqueeze(-1)


def stock_layers(model, hidden, masks):
    """Run the stock model's own layers with one attention mask each, then its classifier."""
    for layer, mask in zip(model.bert.encoder.layer, masks, strict=True):
        hidden = layer(hidden, attention_mask=mask)
    return model.classifier(model.bert.pooler(hidden))


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
        logits = reducer.backbone.classify(state.first_tokens()) + state.layer
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


# Gates ---------------------------------------------------------------------------------------------------------------


def test_straight_through_has_the_hard_value_and_the_soft_slope():
    keep = torch.tensor([[True, False, True]])
    new, old = torch.randn(2, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    gate = keep.double().requires_grad_()
    value = straight_through(keep, gate, new, old)
    assert torch.equal(value, torch.where(keep.unsqueeze(-1), new, old))
    weights = torch.randn(1, 3, 4).double()
    slopes = torch.autograd.grad((value * weights).sum(), (gate, new))
    blend = gate.unsqueeze(-1) * new + (1 - gate.unsqueeze(-1)) * old
    for ours, soft in zip(slopes, torch.autograd.grad((blend * weights).sum(), (gate, new)), strict=True):
        torch.testing.assert_close(ours, soft, **TIGHT)


def soft_forward(model, ids, gates):
    """A text through the stock model's modules with every token weighted by the product of its gates so far."""
    hidden, product = model.bert.embeddings(ids), 1.0
    for layer, gate in zip(model.bert.encoder.layer, gates, strict=True):
        product = product * gate
        own = layer.attention.self
        query, key, value = (f(hidden).view(-1, 4, 8).transpose(0, 1) for f in (own.query, own.key, own.value))
        weights = (query @ key.transpose(1, 2) / 8**0.5).exp() * product
        context = ((weights / weights.sum(dim=-1, keepdim=True)) @ value).transpose(0, 1).flatten(1).unsqueeze(0)
        middle = layer.attention.output(context, hidden)
        new = layer.output(layer.intermediate(middle), middle)
        share = product.unsqueeze(-1)
        hidden = share * new + (1 - share) * hidden
    return model.classifier(model.bert.pooler(hidden)).square().sum()


def test_gates_have_the_slope_of_soft_removal(build):
    """Finite differences of the soft model at the hard gates, through attention, feed-forward and the cascade."""
    reducer, model, batch = build(), tiny_model("bert"), make_batch((7,))
    gates = torch.tensor([[1, 1, 0, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1, 0], [1, 0, 1, 1, 1, 0, 1]]).double()
    leaves = gates.clone().requires_grad_()
    for layer in range(3):
        reducer.plan["before_layer", layer] = lambda state, i=layer: Decision(
            keep=leaves[i].bool().unsqueeze(0), gate=leaves[i].unsqueeze(0)
        )
    with reducer.mode("masked"):
        value = reducer(**batch).logits.square().sum()
    value.backward()
    with torch.no_grad():
        assert value.item() == pytest.approx(soft_forward(model, batch["input_ids"], gates).item(), rel=1e-9)
        for layer, token in torch.cartesian_prod(torch.arange(3), torch.arange(1, 7)).tolist():
            step = torch.zeros_like(gates)
            step[layer, token] = 1e-6
            ahead, behind = (soft_forward(model, batch["input_ids"], g) for g in (gates + step, gates - step))
            slope = ((ahead - behind) / 2e-6).item()
            assert leaves.grad[layer, token].item() == pytest.approx(slope, rel=1e-5, abs=1e-7), (layer, token)
    assert (leaves.grad[:, 0] == 0).all()  # [CLS] has no choice
    assert leaves.grad[0, 2] != 0 and leaves.grad[1, 3] != 0 and leaves.grad[2, 1] != 0  # removed keys


def test_gates_of_attention_against_finite_differences():
    """`gradcheck` on the weights themselves, removed keys included."""
    query, key, value = torch.randn(3, 2, 5, 2, 3, dtype=torch.float64)
    allowed = torch.tensor([[True, False, True, True, False], [True, True, False, True, True]])
    keys = {"allowed": allowed, "visible": torch.ones_like(allowed)}

    def context(gate):
        return masked_attention(query, key, value, MaskedKeys(gate=gate, **keys))[0]

    gate = allowed.double().requires_grad_()
    assert torch.autograd.gradcheck(context, gate)
    (slope,) = torch.autograd.grad(context(gate).square().sum(), gate)
    assert (slope[~allowed] != 0).all()


def test_a_drop_without_gate_after_one_with_gate_removes_the_key(build):
    """A method may train some of its decisions only; the others must hide their tokens all the same."""
    reducer, batch = build(), make_batch()
    keeps = table(2, len(LENGTHS), 12, share=0.7)
    reducer.plan["before_layer", 0] = reducer.plan["before_layer", 1] = lambda state: Decision(
        keep=at(state, keeps[state.layer])
    )
    expected = run(reducer, batch, "packed").logits
    reducer.plan["before_layer", 0] = lambda state: Decision(keep=keeps[0], gate=keeps[0].double())
    torch.testing.assert_close(run(reducer, batch, "masked").logits, expected, **TIGHT)


def test_packed_mode_refuses_a_gate_with_gradient(build):
    reducer, batch = build(), make_batch()
    gate = torch.ones(sum(LENGTHS), dtype=torch.float64, requires_grad=True)
    reducer.plan["before_layer", 0] = lambda state: Decision(keep=gate.bool(), gate=gate)
    with pytest.raises(ValueError, match="cannot carry a gate's gradient; train in masked"), reducer.mode("packed"):
        reducer(**batch)
    run(reducer, batch, "packed")  # without gradients there is nothing to carry


# Attention -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_weights_of_the_kept_keys_sum_to_one(gated, biased):
    """Also where a removed key outscores every kept one by far."""
    query, key = torch.randn(2, 3, 6, 2, 4, dtype=torch.float64)
    key[:, 2] = 1000 * query[:, 0]
    allowed = table(3, 6, share=0.7)
    allowed[:, 0], allowed[:, 2] = True, False
    keys = MaskedKeys(
        allowed=allowed,
        visible=torch.ones_like(allowed),
        gate=allowed.double() if gated else None,
        bias=torch.randn(3, 6).double() if biased else None,
    )
    counted = allowed.double()[:, :, None, None].expand(3, 6, 2, 1)
    kept, received, _ = masked_attention(query, key, counted, keys, voters=torch.ones_like(allowed))
    torch.testing.assert_close(kept, torch.ones_like(kept), **TIGHT)
    assert (masked_attention(query, key, 1 - counted, keys)[0] == 0).all()
    assert (received[~allowed] == 0).all()


def test_scores_do_not_change_attention_and_chunks_do_not_change_scores():
    """More than 64 query rows run in chunks; the masked path holds all rows at once."""
    lengths = [150, 1, 64, 70, 65, 150, 128]
    query, key, value = torch.randn(3, sum(lengths), 2, 4, dtype=torch.float64)
    plain, _, _ = packed_attention(query, key, value, lengths, lengths)
    context, received, diagonal = packed_attention(query, key, value, lengths, lengths, scores=True)
    torch.testing.assert_close(context, plain, **TIGHT)
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        everything = torch.ones(1, length, dtype=torch.bool)
        keys = MaskedKeys(allowed=everything, visible=everything)
        whole = masked_attention(*(x[rows].unsqueeze(0) for x in (query, key, value)), keys, voters=everything)
        without, _, _ = masked_attention(*(x[rows].unsqueeze(0) for x in (query, key, value)), keys)
        torch.testing.assert_close(without, whole[0], **TIGHT)
        for ours, reference in zip((context, received, diagonal), whole, strict=True):
            torch.testing.assert_close(ours[rows], reference[0], **TIGHT)
        start += length


def test_attention_equals_the_definition():
    """Masked, with bias and segments, against softmax by hand."""
    query, key, value = torch.randn(3, 2, 6, 2, 4, dtype=torch.float64)
    allowed, bias = torch.tensor([[1, 1, 0, 1, 1, 1], [1, 0, 1, 1, 1, 0]]).bool(), torch.randn(2, 6).double()
    segments = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    mask = allowed.unsqueeze(1) & (segments.unsqueeze(1) == segments.unsqueeze(2))
    logits = torch.einsum("bqhd,bkhd->bhqk", query, key) / 2 + bias[:, None, None, :]
    weights = F.softmax(logits.masked_fill(~mask.unsqueeze(1), -torch.inf), dim=-1)
    expected = torch.einsum("bhqk,bkhd->bqhd", weights, value)
    keys = MaskedKeys(allowed=allowed, visible=allowed, bias=bias, segments=(segments, segments))
    for voters in (None, allowed):
        context, received, _ = masked_attention(query, key, value, keys, voters=voters)
        torch.testing.assert_close(context, expected, **TIGHT)
    torch.testing.assert_close(received, (weights.mean(dim=1) * allowed.unsqueeze(2)).sum(dim=1), **TIGHT)


# A method of one's own -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StrideOptions(Options):
    """Every `stride`-th token."""

    stride: int = 2


class Stride(TokenReducer):
    """Keeps every second token, scaled by something to train."""

    options_class = StrideOptions
    traits = Traits(title="Stride", dropped="forwarded")

    def build(self):
        self.weight = torch.nn.Parameter(torch.full((), 0.5))

    def before_layer(self, state):
        keep = state.positions % self.options.stride == 0
        return Decision(keep=keep, scale=self.weight.expand(keep.shape))


def test_a_new_method_is_one_class_and_one_registration(build, tmp_path):
    """It is listed, created, saved and loaded by name; afterwards it is unknown again."""
    assert "stride" not in methods.available()
    reducer = build(Stride, stride=3)
    assert methods.available()[0] == "dense" and "stride" in methods.available()
    assert methods.lookup("stride") is Stride
    batch = make_batch()
    trace = agree(reducer, batch).trace
    assert trace.ffn_tokens[:, 0].tolist() == [-(-n // 3) for n in LENGTHS]
    reducer.weight.data.fill_(0.75)
    reducer.save_pretrained(tmp_path)
    loaded = methods.load(tmp_path).double().eval()
    assert isinstance(loaded, Stride) and loaded.options == StrideOptions(stride=3)
    assert torch.equal(run(loaded, batch, "packed").logits, run(reducer, batch, "packed").logits)
    unregister("stride")
    with pytest.raises(KeyError, match="no method 'stride'"):
        methods.load(tmp_path)


def test_a_name_is_given_once(build):
    class Dense(TokenReducer):
        """Another class that wants a taken name."""

    with pytest.raises(ValueError, match="method 'dense' is registered already, by Dense"):
        register("dense")(Dense)
    assert methods.lookup("dense") is not Dense
