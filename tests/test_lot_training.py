"""How LoT's routers learn: saliency, labels, losses, recipes; [3] is the third invariant of the method notes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import methods
from benchmarks.data import Feature
from benchmarks.train import Compute, train_stage
from methods import ParameterGroup, Stage
from methods.lot import nucleus, routed_tokens, router_labels, router_loss, saliency
from methods.recipes import FINE_TUNE
from tests.tiny import HEADS, batch_for, labels_for, make_batch, tiny_model, tiny_reducer
from tests.told import TIGHT


def check(reducer, batch):
    """The batch with labels as `losses` gets it."""
    labels = labels_for(reducer, batch)
    if "labels" not in labels:
        labels = {"labels": torch.stack(tuple(labels.values()), dim=1)}
    return reducer.check_inputs(**batch, **labels)


# Gradients -----------------------------------------------------------------------------------------------------------


def gated_step(detached):
    """One training pass of the task loss alone; the reducer and each layer's (gate, leaping tokens)."""
    reducer, batch, gates = tiny_reducer("lot").train(), make_batch((12, 11, 10, 9)), []
    reducer.set_options(reg_weight=0.0)
    plain = reducer.before_layer

    def before_layer(state):
        decision = plain(state)
        gate = decision.gate.detach() if detached else decision.gate
        if not detached:
            gate.retain_grad()
        gates.append((gate, decision.leap))
        return replace(decision, gate=gate)

    reducer.before_layer = before_layer
    torch.manual_seed(0)
    output = reducer(**batch, **labels_for(reducer, batch))
    assert list(output.losses) == ["task"]
    output.loss.backward()
    return reducer, gates, batch["attention_mask"].bool()


def test_the_task_loss_reaches_every_router_straight_through():
    """[9] The mask is hard; its gradient comes from the soft sample, for masked keys too."""
    reducer, gates, real = gated_step(detached=False)
    for gate, leap in gates:
        routed = routed_tokens(real)
        assert torch.equal(gate[routed].detach(), (~leap[routed]).float())
        assert leap.any() and (gate.grad[leap] != 0).all()
    for name, parameter in reducer.routers.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


def test_without_the_gate_no_router_learns_from_the_task():
    """[9]"""
    reducer, _, _ = gated_step(detached=True)
    assert all(p.grad is None or (p.grad == 0).all() for p in reducer.routers.parameters())


# Saliency ------------------------------------------------------------------------------------------------------------


def test_saliency_of_a_bag_of_states():
    """[11] z = sum_j u . h_j: the norm of u * h_j, once per layer; linear in z; 0 on pads."""
    start = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    u, real = torch.randn(4, dtype=torch.float64), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1] * 5]).bool()
    for scale in (1.0, -3.0):
        states = [start]
        for _ in range(2):
            states.append(states[-1].clone())  # layers that change nothing
        gold = scale * (states[-1] * u).sum(dim=-1).masked_fill(~real, 0).sum(dim=1)
        expected = 3 * abs(scale) * (start * u).norm(dim=-1) * real
        torch.testing.assert_close(saliency(gold, states, real), expected.detach(), **TIGHT)


@pytest.mark.parametrize("head", HEADS)
def test_saliency_is_the_gradient_times_the_input_of_each_layer(head):
    """Section 2.2, against the stock model's own hidden states; for spans and values, our extension."""
    reducer = tiny_reducer("lot", head=head)
    inputs, model = check(reducer, batch_for(reducer, (9, 4))), tiny_model("bert", head)
    output = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask.long(), output_hidden_states=True)
    rows = torch.arange(2)
    if head == "span_qa":
        gold = output.start_logits[rows, inputs.labels[:, 0]] + output.end_logits[rows, inputs.labels[:, 1]]
    elif head == "token_classification":
        labelled = inputs.labels >= 0
        gold = output.logits[labelled].gather(1, inputs.labels[labelled].unsqueeze(1))
    else:
        gold = output.logits[:, 0] if head == "regression" else output.logits[rows, inputs.labels]
    slopes = torch.autograd.grad(gold.sum(), output.hidden_states[:3])
    terms = [(slope * state).norm(dim=-1) for slope, state in zip(slopes, output.hidden_states, strict=False)]
    expected = torch.stack(terms).sum(dim=0) * inputs.attention_mask
    lesson = reducer.teacher.teach(inputs, gradients=True)
    ours = saliency(reducer.gold(lesson.logits, inputs.labels), lesson.states[:-1], inputs.attention_mask)
    torch.testing.assert_close(ours, expected.detach(), **TIGHT)
    assert (ours[inputs.attention_mask] > 0).all()


def test_gold_of_unanswerable_spans_and_of_several_labels():
    """An answer outside the text has no logit to ask; several labels at once add theirs up."""
    spans = tiny_reducer("lot", head="span_qa")
    logits = torch.arange(12.0).view(2, 3, 2)
    assert spans.gold(logits, torch.tensor([[0, 2], [3, 99]])).tolist() == [0.0 + 5.0, 0.0]
    several = tiny_reducer("lot").gold(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[1.0, 0.0, 1.0]]))
    assert several.tolist() == [5.0]


def test_labels_follow_their_rows():
    """[11, 13] Shuffled into batches, rows 0, 999, 1000, 1001 and the last have the labels that they have alone."""
    reducer = tiny_reducer("lot")
    reducer.set_options(top_p=0.5)
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(5, 60, (1_040, 8), generator=generator)
    labels = torch.randint(0, 3, (1_040,), generator=generator)
    order = torch.randperm(1_040, generator=generator)
    together = torch.empty(1_040, 8, dtype=torch.bool)
    for rows in order.split(104):
        together[rows] = reducer.labels(reducer.check_inputs(ids[rows], labels=labels[rows]))
    for row in (0, 999, 1_000, 1_001, 1_039):
        alone = reducer.labels(reducer.check_inputs(ids[row : row + 1], labels=labels[row : row + 1]))
        assert torch.equal(alone[0], together[row])
    assert len(together.unique(dim=0)) > 20


def test_labels_are_the_teachers_not_the_students():
    """The scorer stays as it was when it was set, whatever training does to the model."""
    reducer, batch = tiny_reducer("lot"), make_batch()
    reducer.set_options(top_p=0.6)
    inputs = check(reducer, batch)
    before = reducer.labels(inputs)
    with torch.no_grad():
        for parameter in reducer.model.parameters():
            parameter.normal_()
    assert torch.equal(reducer.labels(inputs), before)
    reducer.set_teacher(reducer.model)
    assert not torch.equal(reducer.labels(inputs), before)


# Labels --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("top_p", "count"), [(0.1, 1), (0.3, 1), (0.75, 2), (0.85, 2), (0.95, 3), (1.01, 4)])
def test_the_label_rule_by_hand(top_p, count):
    """[12] The token that crosses top_p is left out, the first one always in; of equals, the earlier one."""
    probabilities = torch.tensor([[0.2, 0.5, 0.1, 0.2]], dtype=torch.float64)
    expected = torch.zeros(1, 4, dtype=torch.bool)
    expected[:, [1, 0, 3, 2][:count]] = True
    assert torch.equal(nucleus(probabilities, top_p), expected)


@pytest.mark.parametrize("over", ["valid_non_cls", "all_positions"])
def test_labels_grow_with_top_p_and_name_at_least_one_token(over):
    """[12] Before [CLS] is dropped; over valid tokens [CLS] has no share, so that one remains afterwards too."""
    real = make_batch()["attention_mask"].bool()
    scores = torch.rand(5, 12, generator=torch.Generator().manual_seed(0)) * 3 * real
    previous = torch.zeros_like(real)
    for top_p in (1e-6, 0.1, 0.3, 0.5, 0.9, 1.01):
        labels = router_labels(scores, real, top_p, over)
        assert not (labels & ~routed_tokens(real)).any() and not (previous & ~labels).any()
        assert nucleus(scores.softmax(dim=1), top_p).any(dim=1).all()
        if over == "valid_non_cls":
            assert torch.equal(labels.any(dim=1), real.sum(dim=1) > 1)
        previous = labels
    assert torch.equal(labels, routed_tokens(real))


def test_a_dominant_first_token_swallows_the_published_nucleus():
    """Section 6.6: every label is then "leap"."""
    real = torch.ones(1, 6, dtype=torch.bool)
    scores = torch.tensor([[9.0, 1.0, 2.0, 1.0, 1.0, 1.0]])
    assert not router_labels(scores, real, 0.3, "all_positions").any()
    assert router_labels(scores, real, 0.5, "valid_non_cls").tolist() == [[False, False, True, False, False, False]]


@pytest.mark.parametrize(
    "over",
    [
        "valid_non_cls",
        pytest.param("all_positions", marks=pytest.mark.xfail(strict=True, reason="pads take a share (6.5)")),
    ],
)
def test_padding_changes_no_label(over):
    """[10] From N to 2 N, through the teacher."""
    reducer = tiny_reducer("lot")
    reducer.set_options(label_softmax=over, top_p=0.9)
    narrow, wide = (reducer.labels(check(reducer, make_batch((12, 9, 4), padded_to=n))) for n in (12, 24))
    assert torch.equal(narrow, wide[:, :12]) and not wide[:, 12:].any()


# Losses --------------------------------------------------------------------------------------------------------------


def test_the_router_loss_by_hand():
    """Section 3.5: mean over a text's tokens but [CLS], then over layers and texts; a text of [CLS] alone counts 0."""
    real = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]]).bool()
    labels = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 0]]).bool()
    logits = torch.randn(2, 3, 3, 2, dtype=torch.float64)
    expected = 0.0
    for layer in logits:
        p = layer.softmax(dim=-1)
        expected += -(p[0, 1, 1].log() + p[0, 2, 0].log()) / 2 - p[1, 1, 0].log()
    assert router_loss(logits, labels, real).item() == pytest.approx(float(expected / 6), rel=1e-12)
    wide = torch.nn.functional.pad(logits, (0, 0, 0, 4), value=7.0)
    padded = router_loss(wide, *(torch.nn.functional.pad(x, (0, 4)) for x in (labels, real)))
    assert padded.item() == pytest.approx(float(expected / 6), rel=1e-12)  # [14]


def test_sure_and_right_routers_have_no_loss():
    """[14]"""
    real = make_batch()["attention_mask"].bool()
    labels = router_labels(torch.rand(5, 12), real, 0.5, "valid_non_cls")
    logits = 30.0 * torch.stack((~labels, labels), dim=-1).double() - 30.0 * torch.stack((labels, ~labels), -1).double()
    assert router_loss(logits.unsqueeze(0), labels, real) < 1e-6
    assert router_loss(-logits.unsqueeze(0), labels, real) > 40


def test_the_routers_term_is_weighted_and_asks_the_teacher():
    """[14] With reg_weight 0 the teacher is never asked and the task is the only term."""
    reducer, batch = tiny_reducer("lot").train(), make_batch()
    values = {}
    for weight in (0.05, 0.1, 0.0):
        reducer.set_options(reg_weight=weight)
        reducer.set_teacher(None)
        torch.manual_seed(0)
        losses = reducer(**batch, **labels_for(reducer, batch)).losses
        values[weight] = losses.get("routers")
        assert (reducer._teacher is None) == (weight == 0.0)
    assert values[0.0] is None and values[0.05] > 0
    torch.testing.assert_close(2 * values[0.05], values[0.1])


def test_losses_work_where_no_gradients_are_wanted():
    """A validation loss in train mode: saliency needs a graph of its own."""
    reducer, batch = tiny_reducer("lot").train(), make_batch()
    with torch.no_grad():
        assert reducer(**batch, **labels_for(reducer, batch)).losses["routers"] > 0


# Training ------------------------------------------------------------------------------------------------------------


def decisive(rows, seed):
    """Texts of 12 random tokens, one of which, anywhere, decides the label."""
    generator, made = torch.Generator().manual_seed(seed), []
    for index in range(rows):
        ids = torch.randint(10, 60, (12,), generator=generator).tolist()
        place = int(torch.randint(1, 12, (1,), generator=generator))
        ids[0], ids[place] = 1, 5 + index % 3
        made.append(
            Feature(
                index=index, input_ids=ids, label=index % 3, truncated=False, relevant=[i == place for i in range(12)]
            )
        )
    return made


def rates(reducer, features):
    """Share of decisive and of all tokens that layers process, and accuracy."""
    ids = torch.tensor([feature["input_ids"] for feature in features])
    relevant = torch.tensor([feature["relevant"] for feature in features])
    with torch.no_grad():
        output = reducer.eval()(input_ids=ids)
    masks = output.trace.keep_masks
    right = output.logits.argmax(dim=1) == torch.tensor([feature["label"] for feature in features])
    chosen = masks & relevant.unsqueeze(1)
    return float(chosen.sum() / (3 * relevant.sum())), float(masks.float().mean()), float(right.float().mean())


@pytest.fixture(scope="module")
def scorer():
    """A tiny model that reads the decisive token, and its training rows."""
    features = decisive(512, 0)
    reducer = methods.create("dense", tiny_model("bert", initializer_range=0.1).float())
    stage = Stage(name=FINE_TUNE, epochs=6, groups=(ParameterGroup(learning_rate=2e-3),), batch_size=32)
    train_stage(reducer, stage, features, 0, seed=0, compute=Compute())
    return reducer.model, features


def routed(scorer, *, epochs=6, shuffled=False, **options):
    """LoT trained from the scorer with fast routers; with `shuffled`, on the labels of other rows."""
    model, features = scorer
    student = tiny_model("bert", initializer_range=0.1).float()
    student.load_state_dict(model.state_dict())
    torch.manual_seed(0)
    reducer = methods.create("lot", student, **options)
    reducer.set_teacher(model)
    if shuffled:
        plain = reducer.labels
        reducer.labels = lambda inputs: plain(inputs).roll(1, dims=0)
    groups = (
        ParameterGroup(patterns=("routers.*",), learning_rate=3e-3),
        ParameterGroup(learning_rate=5e-4),
    )
    stage = Stage(name="route", epochs=epochs, groups=groups, batch_size=32, max_grad_norm=1.0)
    return reducer, train_stage(reducer, stage, features, 0, seed=0, compute=Compute())


def test_routers_learn_to_process_the_decisive_token(scorer):
    """[17] Labels mark it; its process rate exceeds 0.95 at a keep ratio below 0.5; shuffled labels blur it."""
    held_out = decisive(300, 1)
    reducer, outcome = routed(scorer, top_p=0.5, reg_weight=2.0)
    ids, relevant, labels = (
        torch.tensor([feature[name] for feature in held_out]) for name in ("input_ids", "relevant", "label")
    )
    marked = reducer.labels(reducer.check_inputs(ids, labels=labels))
    assert (marked & relevant).sum() / relevant.sum() > 0.95
    chosen, everything, accuracy = rates(reducer, held_out)
    assert chosen > 0.95 and everything < 0.5 and accuracy > 0.95
    assert 0 < outcome["observed"]["positive_rate"] < 0.5
    blurred, overall, _ = rates(routed(scorer, top_p=0.5, reg_weight=2.0, shuffled=True)[0], held_out)
    assert blurred - overall < 0.8 * (chosen - everything)


def test_a_smaller_top_p_computes_less(scorer):
    """The trade-off: fewer tokens labelled "process", fewer MACs."""
    held_out, costs = decisive(100, 2), []
    ids = torch.tensor([feature["input_ids"] for feature in held_out])
    for top_p in (0.1, 0.8, 1.01):
        reducer, _ = routed(scorer, epochs=2, top_p=top_p, reg_weight=1.0)
        with torch.no_grad():
            costs.append(int(reducer(input_ids=ids).trace.ffn_tokens.sum()))
    assert costs[0] < costs[1] < costs[2]


def test_fine_tuning_the_scorer_is_ordinary_fine_tuning():
    """No token leaps, no router is asked and there is no second loss."""
    reducer, batch = tiny_reducer("lot").train(), make_batch()
    reducer.begin_stage(Stage(name=FINE_TUNE), 1)
    output = reducer(**batch, **labels_for(reducer, batch))
    assert list(output.losses) == ["task"] and (output.trace.overhead_macs == 0).all()
    with torch.no_grad():
        dense = tiny_model("bert")(**batch).logits
    torch.testing.assert_close(reducer.eval()(**batch).logits, dense, **TIGHT)


# Recipes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rate"), [("sst2", 2e-5), ("mrpc", 2e-5), ("imdb", 5e-5)])
def test_published_recipe(name, rate):
    """Sections 2.1 and 4.1: the scorer, then one joint stage from the pre-trained weights, labels by the scorer."""
    reducer = tiny_reducer("lot")
    scorer, route = reducer.stages(SimpleNamespace(name=name))
    assert (scorer.name, scorer.start, scorer.epochs, scorer.batch_size) == (FINE_TUNE, "pretrained", 10, 32)
    assert (scorer.warmup, scorer.decay, scorer.adam_epsilon, scorer.select) == (0.06, "linear", 1e-8, "last")
    assert scorer.groups == (ParameterGroup(learning_rate=rate, weight_decay=0.01),)
    assert (route.start, route.teacher, route.epochs, route.batch_size) == ("pretrained", "previous", 5, 32)
    assert route.groups == (ParameterGroup(learning_rate=2e-5, weight_decay=0.0),)
    assert (route.warmup, route.decay, route.max_grad_norm, route.select) == (0.0, "linear", 1.0, "best")
    assert (reducer.options.top_p, reducer.options.reg_weight) == (0.3, 0.05)
    assert reducer.task_options(SimpleNamespace(name=name)) == {}


def test_the_short_recipe_goes_on_from_the_dense_model_and_learns_from_it():
    (stage,) = tiny_reducer("lot").stages(SimpleNamespace(name="sst2"), "short")
    assert (stage.start, stage.teacher) == ("dense", "dense")
    routers, backbone = stage.groups
    assert routers.patterns == ("routers.*",) and routers.learning_rate > 10 * backbone.learning_rate
