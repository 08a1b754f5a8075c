"""PABEE: numbers of the paper and invariants of the method notes; [3] is the third of these."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import transformers

import methods
from benchmarks.tasks import get_task
from methods.pabee import depth_weights
from methods.recipes import assign_parameters
from tests.tiny import FAMILIES, labels_for, make_batch, tiny_model, tiny_reducer

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
LAYERS = 8
TEXTS = tuple(1 + 7 * i % 20 for i in range(32))
both_modes = pytest.mark.parametrize("mode", ["masked", "packed"])
both_heads = pytest.mark.parametrize("head", ["classification", "regression"])


def pabee(head="classification", **options):
    """A reducer of eight layers whose exits disagree now and then."""
    model = tiny_model("bert", head, num_hidden_layers=LAYERS)
    reducer = methods.create("pabee", model, **options).double().eval()
    torch.manual_seed(2)
    weight = 0.5 * torch.randn(reducer.backbone.num_labels, 32)
    for classifier in reducer.classifiers:
        classifier.weight.data = weight + 0.2 * torch.randn_like(weight)
        classifier.double()
    return reducer


def saying(answers, head="classification", **options):
    """A reducer whose exit after layer i always gives `answers[i]`: a class, or a value."""
    reducer = pabee(head, **options)
    for classifier, answer in zip(reducer.classifiers, answers, strict=True):
        torch.nn.init.zeros_(classifier.weight)
        bias = [answer] if head == "regression" else [float(answer == label) for label in range(3)]
        classifier.bias.data = torch.tensor(bias, dtype=torch.float64)
    return reducer


def evaluate(reducer, batch, mode="packed"):
    with torch.no_grad(), reducer.mode(mode):
        return reducer(**batch)


def all_logits(reducer, batch):
    """Logits of every exit, the model's own head last, computed from the stock model; (layers, batch, labels)."""
    with torch.no_grad():
        stock = tiny_model("bert", reducer.backbone.head, num_hidden_layers=LAYERS)
        output = stock(**batch, output_hidden_states=True)
        pooled = [stock.bert.pooler(hidden) for hidden in output.hidden_states[1:-1]]
        exits = [classify(states) for classify, states in zip(reducer.classifiers, pooled, strict=True)]
    return torch.stack([*exits, output.logits])


def by_the_book(logits, patience, tolerance=None):
    """Section 2 for texts that leave together: 1-based exit layer and its logits; logits (layers, texts, labels)."""
    count, previous = 0, None
    for layer, z in enumerate(logits, start=1):
        if previous is None:
            same = False
        elif tolerance is None:
            same = torch.equal(z.argmax(dim=1), previous.argmax(dim=1))
        else:
            same = bool(((z - previous).abs() < tolerance).all())
        count = count + 1 if same else 0
        previous = z
        if count == patience:
            return layer, z
    return len(logits), logits[-1]


def undropped(head="classification", **changes):
    """A reducer in train() whose result does not vary."""
    model = tiny_model("bert", head, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **changes)
    return methods.create("pabee", model).double().train()


# Exit rule -----------------------------------------------------------------------------------------------------------


@both_modes
@both_heads
def test_patience_of_all_layers_never_exits(mode, head):
    """[1] t >= L: every text runs all layers and returns the last exit; t = L - 1 comes to the same."""
    batch = make_batch()
    dense = evaluate(methods.create("dense", tiny_model("bert", head, num_hidden_layers=LAYERS)).eval(), batch, mode)
    for patience in (LAYERS - 1, LAYERS, LAYERS + 5):
        output = evaluate(pabee(head, patience=patience, regression_tolerance=math.inf), batch, mode)
        assert (output.trace.exit_layers == LAYERS - 1).all() and not output.trace.exited.any()
        assert torch.equal(output.logits, dense.logits)


@both_modes
def test_patience_0_is_the_dense_model(mode):
    """Section 2: it means "the last layer", not "at once"; no other exit is asked, so the cost is the same too."""
    batch, reducer = make_batch(), saying([1] * 7, patience=0)
    dense = methods.create("dense", tiny_model("bert", num_hidden_layers=LAYERS)).eval()
    output, expected = evaluate(reducer, batch, mode), evaluate(dense, batch, mode)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(reducer.macs(output.trace), dense.macs(expected.trace))


@both_heads
def test_more_patience_never_exits_earlier_or_costs_less(head):
    """[2] Exits lie in t + 1 .. L, and neither the exit layer nor the cost of any text falls as t rises."""
    reducer, batch, exits, macs = pabee(head, regression_tolerance=1.0), make_batch(TEXTS), [], []
    for patience in range(1, LAYERS + 1):
        reducer.set_options(patience=patience)
        trace = evaluate(reducer, batch).trace
        layers = trace.exit_layers + 1
        assert (layers >= min(patience + 1, LAYERS)).all() and (layers <= LAYERS).all()
        exits.append(layers)
        macs.append(reducer.macs(trace))
    exits, macs = torch.stack(exits), torch.stack(macs)
    assert (exits.diff(dim=0) >= 0).all() and len(exits.unique()) > 4
    assert (macs.diff(dim=0) >= 0).all() and macs[0].sum() < macs[-1].sum()


@both_modes
@pytest.mark.parametrize("patience", [1, 2, 6])
def test_constant_predictions_exit_after_t_plus_1(mode, patience):
    """[3] And pitfall 1: t agreements take t + 1 layers."""
    output = evaluate(saying([1] * 7, patience=patience), make_batch(), mode)
    assert (output.trace.exit_layers == patience).all() and output.trace.exited.all()
    assert torch.equal(output.logits.argmax(dim=1), torch.ones(5, dtype=torch.long))


@both_modes
@pytest.mark.parametrize("patience", [1, 2, 6])
def test_alternating_predictions_exit_at_the_end(mode, patience):
    """[3] With the model's own head."""
    batch = make_batch()
    output = evaluate(saying([0, 1, 0, 1, 0, 1, 0], patience=patience), batch, mode)
    assert not output.trace.exited.any()
    torch.testing.assert_close(output.logits, all_logits(pabee(), batch)[-1], **TIGHT)


@both_modes
def test_the_counter_restarts_at_0(mode):
    """Pitfall 7: after a change of prediction, a patience of 2 needs two more agreements."""
    output = evaluate(saying([0, 0, 1, 1, 1, 1, 1], patience=2), make_batch(), mode)
    assert (output.trace.exit_layers == 4).all()  # 0-based: the fifth layer


@both_modes
@both_heads
def test_texts_exit_as_the_rule_says(mode, head):
    """Section 2: layer and logits of each text, against the rule applied to every exit of the stock model."""
    tolerance = 1.0 if head == "regression" else None
    reducer, batch, seen = pabee(head, regression_tolerance=1.0), make_batch(TEXTS), set()
    logits = all_logits(reducer, batch)
    for patience in (1, 2, 3, 4):
        reducer.set_options(patience=patience)
        output = evaluate(reducer, batch, mode)
        for row in range(len(TEXTS)):
            layer, expected = by_the_book(logits[:, [row]], patience, tolerance)
            assert output.trace.exit_layers[row] + 1 == layer
            torch.testing.assert_close(output.logits[[row]], expected, **TIGHT)
            seen.add(layer)
    assert len(seen) > 4


@both_heads
def test_a_batch_gives_what_single_texts_give(head):
    """[5] Logits and exits in input order, although texts leave the batch one by one."""
    reducer = pabee(head, patience=2, regression_tolerance=1.0)
    together = evaluate(reducer, make_batch(TEXTS))
    assert len(together.trace.exit_layers.unique()) > 3
    for row, length in enumerate(TEXTS):
        alone = evaluate(reducer, make_batch((length,)))
        torch.testing.assert_close(alone.logits[0], together.logits[row], **TIGHT)
        assert alone.trace.exit_layers[0] == together.trace.exit_layers[row]


@both_modes
@pytest.mark.parametrize(("tolerance", "exit_layer"), [(0.0, LAYERS - 1), (math.inf, 3)])
def test_extreme_tolerances(mode, tolerance, exit_layer):
    """[6] Tolerance 0 never exits early, not even on equal values; infinity exits after layer t + 1."""
    batch = make_batch()
    for reducer in (pabee("regression"), saying([0.5] * 7, "regression")):
        reducer.set_options(patience=3, regression_tolerance=tolerance)
        assert (evaluate(reducer, batch, mode).trace.exit_layers == exit_layer).all()


@both_modes
@pytest.mark.parametrize(("step", "exit_layer"), [(0.5, LAYERS - 1), (0.25, 2)])
def test_values_are_compared_strictly_and_with_the_latest(mode, step, exit_layer):
    """Section 2: a step of exactly the tolerance disagrees; a slow drift agrees however far it goes."""
    reducer = saying([step * layer for layer in range(7)], "regression", patience=2, regression_tolerance=0.5)
    output = evaluate(reducer, make_batch(), mode)
    assert (output.trace.exit_layers == exit_layer).all()
    assert exit_layer == LAYERS - 1 or torch.equal(output.logits, torch.full((5, 1), 2 * step).double())


@both_modes
@both_heads
def test_leaving_together_is_the_released_rule(mode, head):
    """Section 4: an exit agrees where it does for all texts of the batch; a single text leaves as by default."""
    tolerance = 1.0 if head == "regression" else None
    reducer, early, delayed = pabee(head, patience=1, regression_tolerance=1.0), 0, 0
    for lengths in pairwise(TEXTS[:16]):
        batch = make_batch(lengths)
        reducer.set_options(leave_together=False)
        apart = evaluate(reducer, batch, mode).trace.exit_layers + 1
        reducer.set_options(leave_together=True)
        output = evaluate(reducer, batch, mode)
        layer, logits = by_the_book(all_logits(reducer, batch), 1, tolerance)
        assert output.trace.exit_layers.tolist() == [layer - 1] * 2
        torch.testing.assert_close(output.logits, logits, **TIGHT)
        alone = [evaluate(reducer, make_batch((length,)), mode).trace.exit_layers.item() + 1 for length in lengths]
        assert alone == apart.tolist()
        early, delayed = early + (layer < LAYERS), delayed + bool(layer > apart.max())
    assert early and delayed


@both_modes
def test_several_labels_agree_as_a_set(mode):
    """Where labels do not exclude one another, the largest logit is no prediction; the set of likely ones is."""
    reducer = saying([0] * 7, patience=1)
    for layer, classifier in enumerate(reducer.classifiers):  # label 0 largest; label 1 in every other set
        classifier.bias.data = torch.tensor([2.0, 1.0 if layer % 2 else -1.0, -1.0]).double()
    batch = make_batch()
    assert (evaluate(reducer, batch, mode).trace.exit_layers == 1).all()
    reducer.backbone.config.problem_type = "multi_label_classification"
    assert (evaluate(reducer, batch, mode).trace.exit_layers == LAYERS - 1).all()


@pytest.mark.parametrize(("layers", "patience"), [(12, 6), (6, 3), (3, 1)])
def test_default_patience_is_half_the_layers(layers, patience):
    """Section 5: 6 of 12 is behind the published speed-up."""
    assert methods.create("pabee", tiny_model("bert", num_hidden_layers=layers)).patience == patience


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": -1}, "patience must be a whole number >= 0"),
        ({"patience": 2.5}, "patience must be a whole number >= 0"),
        ({"regression_tolerance": -0.1}, "regression_tolerance must be >= 0, got -0.1"),
        ({"regression_tolerance": math.nan}, "regression_tolerance must be >= 0, got nan"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        methods.create("pabee", tiny_model("bert"), **options)


# Exits and training --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_exits_share_the_pooler_of_the_models_own_head(family):
    """Pitfall 2: with the head's last weights, an exit gives what the head gives on the layer it stands after."""
    model, batch = tiny_model(family), make_batch((9, 4, 7))
    reducer = methods.create("pabee", model, patience=1).double().eval()
    (last,) = (part for part in model.modules() if isinstance(part, torch.nn.Linear) and part.out_features == 3)
    for classifier in reducer.classifiers:
        classifier.load_state_dict(last.state_dict())
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states[1][:, 0]
        exit_logits = reducer.classifiers[0](reducer.backbone.pool(states))
        torch.testing.assert_close(exit_logits, reducer.backbone.classify(states), **TIGHT)
    added = {name for name, _ in reducer.named_parameters() if not name.startswith("model.")}
    assert added == {f"classifiers.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")}


def test_equal_losses_give_that_loss():
    """[4] Weights are 1 .. L over their sum; exits that all give the head's logits cost what the head alone costs."""
    assert depth_weights(12)[-1].item() == pytest.approx(12 / 78) and depth_weights(12)[0].item() == pytest.approx(
        1 / 78
    )
    assert depth_weights(12).sum().item() == pytest.approx(1)
    reducer, batch = undropped(), make_batch()
    for layer in reducer.backbone.layers:  # both blocks add nothing, so every layer's output is its input
        for dense in (layer.attention.output.dense, layer.output.dense):
            torch.nn.init.zeros_(dense.weight)
            torch.nn.init.zeros_(dense.bias)
    for classifier in reducer.classifiers:
        classifier.load_state_dict(reducer.model.classifier.state_dict())
    labels = labels_for(reducer, batch)
    output = reducer(**batch, **labels)
    assert output.loss.item() == pytest.approx(reducer.model(**batch, **labels).loss.item(), rel=1e-6)
    assert output.losses["task"].item() == pytest.approx(output.loss.item() / 2, rel=1e-6)  # 3 of 1 + 2 + 3


@both_heads
def test_deeper_exits_weigh_more(head):
    """Section 2: sum over i of i * L_i, over 1 + 2 + 3; cross-entropy, or squared error for values."""
    reducer, batch = undropped(head), make_batch()
    labels = labels_for(reducer, batch)["labels"]
    stock = tiny_model("bert", head)
    with torch.no_grad():
        output = stock(**batch, output_hidden_states=True)
        pooled = [stock.bert.pooler(hidden) for hidden in output.hidden_states[1:3]]
        logits = [reducer.classifiers[0](pooled[0]), reducer.classifiers[1](pooled[1]), output.logits]
    if head == "regression":
        losses = [torch.nn.functional.mse_loss(z.squeeze(1), labels).item() for z in logits]
    else:
        losses = [torch.nn.functional.cross_entropy(z, labels).item() for z in logits]
    loss = reducer(**batch, labels=labels).loss.item()
    assert loss == pytest.approx((losses[0] + 2 * losses[1] + 3 * losses[2]) / 6, rel=1e-6)


def test_each_exit_trains_the_layers_below_it():
    """Section 2: the first exit's loss reaches its classifier, the shared pooler and layer 1, and nothing above."""
    reducer, batch = undropped(), make_batch()
    for classifier in reducer.classifiers[1:]:
        classifier.requires_grad_(False)
        torch.nn.init.zeros_(classifier.weight)  # the second exit sends nothing down
    output = reducer(**batch, **labels_for(reducer, batch))
    output.losses["exits"].backward()
    encoder = reducer.model.bert
    reached = [
        any(p.grad is not None and bool(p.grad.any()) for p in layer.parameters()) for layer in encoder.encoder.layer
    ]
    assert reached == [True, False, False]
    assert encoder.pooler.dense.weight.grad.any() and reducer.classifiers[0].weight.grad.any()
    assert encoder.embeddings.word_embeddings.weight.grad.any() and not reducer.model.classifier.weight.grad.any()


@both_modes
def test_evaluation_loss_is_that_of_the_exit_taken(mode):
    """Pitfall 8: one exit's loss, not comparable with the training loss."""
    reducer, batch = pabee(patience=2), make_batch(TEXTS)
    labels = labels_for(reducer, batch)
    output = evaluate(reducer, batch | labels, mode)
    expected = torch.nn.functional.cross_entropy(output.logits, labels["labels"])
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6) and output.trace.exited.any()


def test_published_recipe():
    """Section 3: one stage from the pre-trained weights, everything trains."""
    reducer = tiny_reducer("pabee")
    (stage,) = reducer.stages(get_task("rte"))
    (group,) = stage.groups
    assert (stage.start, stage.epochs, stage.batch_size, group.learning_rate) == ("pretrained", 5, 32, 2e-5)
    assert (stage.warmup, stage.decay, stage.max_grad_norm, group.weight_decay) == (0.0, "linear", 1.0, 0.0)
    ((_, trained),) = assign_parameters(reducer, stage.groups)
    assert len(trained) == len(list(reducer.parameters()))
    assert reducer.task_options(get_task("rte")) == {}  # the patience is searched
    assert reducer.task_options(get_task("rte"), "short") == {"patience": 4}
    assert reducer.task_options(get_task("stsb"), "short") == {"patience": 4, "regression_tolerance": 0.05}


# Cost ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "parameters"), [(2, 16_918), (3, 25_377)])
def test_parameters_added_to_bert_base(classes, parameters):
    """[7] (L - 1)(dC + C): one classifier for every layer but the last, whose exit is the model's own head."""
    with torch.device("meta"):
        model = transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=classes))
        before = sum(p.numel() for p in model.parameters())
        reducer = methods.create("pabee", model)
    assert sum(p.numel() for p in reducer.parameters()) - before == parameters


def test_cost_by_exit_layer():
    """Section 4: e layers and e exits of d^2 + dC each, the pooler being asked at every layer passed."""
    reducer, n, length = pabee(patience=1), 20, 24
    trace = evaluate(reducer, make_batch((n,) * 3)).trace
    exit_macs = 32 * 32 + 3 * 32
    for padding, tokens in (("none", n), ("sequence", length)):
        layer = tokens * (4 * 32 * 32 + 2 * tokens * 32 + 2 * 32 * 48)
        expected = [(e + 1) * (layer + exit_macs) for e in trace.exit_layers.tolist()]
        assert reducer.macs(trace, padding, length).tolist() == expected
    reducer.set_options(patience=LAYERS)
    layer = n * (4 * 32 * 32 + 2 * n * 32 + 2 * 32 * 48)
    never = reducer.macs(evaluate(reducer, make_batch((n,))).trace)
    assert int(never) == LAYERS * (layer + exit_macs)  # the last exit is the head, paid once


@both_heads
def test_no_layer_runs_past_the_exit(head):
    """[8] Rows that each layer really computed equal the histogram of exits."""
    reducer, batch, calls = pabee(head, patience=2, regression_tolerance=1.0), make_batch((8,) * 24), []
    batch["input_ids"] = torch.randint(5, 60, (24, 8))
    for layer in reducer.backbone.layers:
        layer.intermediate.register_forward_hook(lambda module, arguments, out: calls.append(len(out) // 8))
    trace = evaluate(reducer, batch).trace
    histogram = torch.bincount(trace.exit_layers, minlength=LAYERS)
    assert (histogram > 0).sum() > 2 and histogram.sum() == 24
    assert calls == [24 - int(histogram[:layer].sum()) for layer in range(LAYERS)]
    assert sum(calls) == int((trace.exit_layers + 1).sum())
