"""What the engine offers beside reduction itself: cached states, layers passed by, published masking, teachers."""

from __future__ import annotations

import pytest
import torch

import methods
from methods import Decision
from methods.state import StateOptions
from methods.teacher import Teacher
from tests.tiny import FAMILIES, HEADS, TOKEN_HEADS, batch_for, logits_of, make_batch, tiny_model
from tests.told import TIGHT, Told, agree, at, final_states, run, stock_layers, table

SECOND = torch.arange(12) >= 4  # tokens of a pair's second text


class Variant(Told):
    """Told, with the state options that a test sets."""

    variant = StateOptions()

    def state_options(self):
        return self.variant


def encoded(model, batch):
    with torch.no_grad():
        return model.bert.embeddings(batch["input_ids"])


# States from a cache --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_supplied_states_replace_computed_ones(build, mode):
    """Tokens leap over the lower layers and go on with states from elsewhere: the upper layers see exactly these."""
    batch, supplied = make_batch((12,)), torch.randn(1, 12, 32, dtype=torch.float64)
    reducer = build(Told)

    def leap(state):
        return Decision(leap=at(state, SECOND.expand(1, 12)))

    def supply(state):
        second = at(state, SECOND.expand(1, 12)).unsqueeze(-1)
        return Decision(states=torch.where(second, at(state, supplied), state.hidden))

    reducer.plan = {("before_layer", 0): leap, ("before_layer", 1): leap, ("before_layer", 2): supply}
    output = run(reducer, batch, mode)
    model = tiny_model("bert")
    with torch.no_grad():
        hidden = encoded(model, batch)[:, :4]
        for layer in model.bert.encoder.layer[:2]:
            hidden = layer(hidden)
        hidden = torch.cat((hidden, supplied[:, 4:]), dim=1)
        expected = model.classifier(model.bert.pooler(model.bert.encoder.layer[2](hidden)))
    torch.testing.assert_close(output.logits, expected, **TIGHT)
    assert output.trace.ffn_tokens.tolist() == [[4, 4, 12]]


def test_states_supplied_to_leaping_tokens_stay_with_them(build):
    """Replacing states and leaping at once: what leaps lands with the supplied state, in both modes."""
    supplied = torch.randn(5, 12, 32, dtype=torch.float64)
    leaps = table(5, 12)
    reducer = build(Told, head="span_qa")
    reducer.plan = {
        ("before_layer", 1): lambda state: Decision(states=at(state, supplied), leap=at(state, leaps)),
    }
    agree(reducer, make_batch())


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_the_first_token_leaps_only_when_told(build, mode):
    batch = make_batch((9, 7))
    first_half = torch.arange(9).expand(2, 9) < 4
    for whole in (False, True):
        reducer = build(Told, head="span_qa")
        reducer.plan = {
            ("before_layer", 0): lambda state: Decision(leap=at(state, first_half), leap_first=whole)  # noqa: B023
        }
        trace = run(reducer, batch, mode).trace
        assert trace.ffn_tokens[:, 0].tolist() == [9 - 4 + (not whole), 7 - 4 + (not whole)]
        assert trace.ffn_tokens[:, 1].tolist() == [9, 7]
        methods.registry.unregister("told")


def test_a_leaping_first_token_keeps_its_state(build):
    reducer, batch = build(Told, head="span_qa"), make_batch((9, 7))
    everything_first = torch.arange(9).expand(2, 9) < 4
    reducer.plan = {
        ("before_layer", layer): lambda state: Decision(leap=at(state, everything_first), leap_first=True)
        for layer in range(3)
    }
    agree(reducer, batch)
    states = final_states(reducer, batch, "packed")
    torch.testing.assert_close(states[:, 0], encoded_spans(batch)[:, 0], **TIGHT)


def encoded_spans(batch):
    with torch.no_grad():
        return tiny_model("bert", "span_qa").bert.embeddings(batch["input_ids"])


# Layers passed by -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_skipped_layers_change_nothing_and_cost_nothing(build, mode):
    reducer, batch, model = build(Variant), make_batch((9, 7)), tiny_model("bert")
    reducer.variant = StateOptions(skipped_layers=frozenset({1}))
    reducer.plan = {("before_layer", 2): lambda state: Decision(keep=at(state, table(2, 9)))}
    output = run(reducer, batch, mode)
    reducer.plan = {}
    plain = run(reducer, batch, mode)
    with torch.no_grad():
        del model.bert.encoder.layer[1]
        torch.testing.assert_close(plain.logits, model(**batch).logits, **TIGHT)
    assert output.trace.ffn_tokens[:, 1].tolist() == [0, 0]
    assert not output.trace.keep_masks[:, 1].any()
    assert torch.equal(output.trace.keep_masks[:, 2].sum(dim=1), output.trace.ffn_tokens[:, 2])


# Published masking ----------------------------------------------------------------------------------------------------


def test_refined_removed_tokens_are_updated_and_charged_as_dense(build):
    """Keys are hidden, but every token goes through every layer as a query: only the keys' mask differs from dense."""
    batch, keep = make_batch((9,)), table(1, 9)
    keep[:, 0] = True
    reducer = build(Variant)
    reducer.variant = StateOptions(refine_removed=True)
    reducer.plan = {("before_layer", 1): lambda state: Decision(keep=keep)}
    assert reducer.run_mode == "masked"
    output = run(reducer, batch, "masked")
    masks = [torch.ones(1, 1, 1, 9, dtype=torch.bool), *[keep[:, None, None]] * 2]
    model = tiny_model("bert")
    with torch.no_grad():
        expected = stock_layers(model, model.bert.embeddings(batch["input_ids"]), masks)
    torch.testing.assert_close(output.logits, expected, **TIGHT)
    assert int(reducer.macs(output.trace)) == int(reducer.backbone.dense_macs(torch.tensor([9])))


def test_all_vote_counts_the_rows_of_pads_and_removed_tokens(build):
    batch, seen = make_batch((9, 4)), []
    reducer = build(Variant)
    reducer.variant, reducer.scored = StateOptions(all_vote=True), (1,)
    reducer.plan = {
        ("before_layer", 1): lambda state: Decision(keep=state.positions < 3),
        ("after_attention", 1): lambda state: seen.append(state.sum(state.scores.received)),
    }
    run(reducer, batch, "masked")
    torch.testing.assert_close(seen[0], torch.full((2,), 9.0, dtype=torch.float64), **TIGHT)


def test_masking_variants_cannot_run_packed(build):
    reducer = build(Variant)
    reducer.variant = StateOptions(all_vote=True)
    with pytest.raises(ValueError, match="only mask tokens"):
        run(reducer, make_batch(), "packed")


def test_noisy_scores_differ_in_training_alone(build):
    batch = make_batch((9,))
    received = {}
    for noisy in (False, True):
        reducer = build(Variant)
        reducer.variant, reducer.scored = StateOptions(noisy_scores=noisy, training=True), (0,)
        for training in (False, True):
            torch.manual_seed(4)
            reducer.train(training)
            reducer.plan = {
                ("after_attention", 0): lambda state: received.update(
                    {(noisy, training): state.scores.received}  # noqa: B023
                )
            }
            run(reducer, batch, "masked")
        methods.registry.unregister("variant")
    torch.testing.assert_close(received[True, False], received[False, False], **TIGHT)
    torch.testing.assert_close(received[False, True].sum(), torch.tensor(9.0, dtype=torch.float64), **TIGHT)
    assert not torch.allclose(received[True, True].sum(), received[False, True].sum())


# Teachers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", HEADS)
def test_a_teacher_is_the_dense_model(family, head):
    model = tiny_model(family, head)
    reducer = methods.create("transkimmer", model)
    batch = batch_for(reducer)
    lesson = reducer.teacher.teach(reducer.check_inputs(**batch))
    with torch.no_grad():
        stock = model(**batch, output_hidden_states=True)
    mask = batch["attention_mask"].unsqueeze(-1)
    found = lesson.logits * mask if head in TOKEN_HEADS else lesson.logits
    torch.testing.assert_close(found, logits_of(stock, batch["attention_mask"]), **TIGHT)
    assert len(lesson.states) == 4
    torch.testing.assert_close(
        reducer.backbone.finish(lesson.states[-1]) * mask, stock.hidden_states[-1] * mask, **TIGHT
    )


def test_a_teacher_is_frozen_and_not_part_of_its_student(tmp_path):
    reducer = methods.create("transkimmer", tiny_model("bert"))
    names = set(reducer.state_dict())
    teacher = reducer.teacher
    before = {key: value.clone() for key, value in teacher.model.state_dict().items()}
    reducer.train()
    with torch.no_grad():
        for parameter in reducer.parameters():
            parameter.add_(1.0)
    assert set(reducer.state_dict()) == names and not teacher.model.training
    assert all(torch.equal(before[key], value) for key, value in teacher.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    reducer.set_teacher(None)
    assert reducer.teacher is not teacher


def test_derivatives_with_respect_to_a_teachers_states():
    """Finite differences on the states that the second layer reads."""
    teacher, inputs = Teacher(tiny_model("bert")), methods.create("dense", tiny_model("bert")).check_inputs
    batch = inputs(**make_batch((5,)))
    lesson = teacher.teach(batch, gradients=True)
    gradient = torch.autograd.grad(lesson.logits[0, 1], lesson.states)[1]
    step = torch.zeros_like(lesson.states[1]).index_put(
        (torch.tensor(0), torch.tensor(2), torch.tensor(7)), torch.tensor(1e-6, dtype=torch.float64)
    )

    def rest(states):
        model = teacher.model
        with torch.no_grad():
            for layer in model.bert.encoder.layer[1:]:
                states = layer(states)
            return model.classifier(model.bert.pooler(states))[0, 1]

    slope = (rest(lesson.states[1] + step) - rest(lesson.states[1] - step)) / 2e-6
    torch.testing.assert_close(gradient[0, 2, 7], slope, rtol=1e-5, atol=1e-8)


def test_a_teacher_reports_scores_of_the_layers_asked_for():
    reducer = methods.create("dense", tiny_model("bert"))
    lesson = reducer.teacher.teach(reducer.check_inputs(**make_batch()), score_layers=(0, 2))
    assert set(lesson.scores) == {0, 2}
    lengths = make_batch()["attention_mask"].sum(dim=1).double()
    torch.testing.assert_close(lesson.scores[2].received.sum(dim=1), lengths, **TIGHT)
    assert logits_of(reducer(**make_batch())).shape == lesson.logits.shape
