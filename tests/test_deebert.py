"""DeeBERT: numbers of the paper and invariants of the method notes; [3] is the third of these."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import transformers

import methods
from methods.deebert import OffRamp, entropy
from methods.recipes import assign_parameters
from tests.tiny import labels_for, make_batch, tiny_model, tiny_reducer

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
# The thresholds of the public sweep (section 4).
SWEEP = (0, 0.001, 0.005, 0.01, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
RTE = SimpleNamespace(name="rte", skim_weight=0.8, sequence_length=128)


def deebert(threshold, **options):
    """A tiny reducer of three classes whose off-ramps are unsure to different degrees."""
    reducer = tiny_reducer("deebert")
    reducer.set_options(threshold=threshold, **options)
    return reducer


def undropped(**options):
    """A reducer in train() whose result does not vary."""
    model = tiny_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return methods.create("deebert", model, **options).double().train()


def evaluate(reducer, batch, mode="packed"):
    with torch.no_grad(), reducer.mode(mode):
        return reducer(**batch)


def train(reducer, stage, updates=3):
    """A few updates of a stage, as its groups say."""
    groups = assign_parameters(reducer, stage.groups)
    optimizer = torch.optim.AdamW([{"params": members, "lr": 1e-2} for _, members in groups])
    reducer.train()
    reducer.begin_stage(stage, updates)
    batch = make_batch((9, 8, 7))
    for _ in range(updates):
        optimizer.zero_grad()
        reducer(**batch, **labels_for(reducer, batch)).loss.backward()
        optimizer.step()
    reducer.end_stage(stage)
    reducer.eval()


def base_model():
    """BERT-base with two classes, shapes only."""
    with torch.device("meta"):
        model = transformers.BertForSequenceClassification(transformers.BertConfig())
        return methods.create("deebert", model)


def trace_of(reducer, histogram, n, ramps=None):
    """The trace of texts of n tokens, `histogram[e]` of which left after layer e + 1."""
    exits = torch.repeat_interleave(torch.arange(12), torch.tensor(histogram))
    trace = methods.Trace(torch.ones(len(exits), n, dtype=torch.bool), 12)
    for layer in range(12):
        rows = (exits >= layer).nonzero().squeeze(1)
        tokens = torch.full_like(rows, n)
        trace.record_attention(layer, rows, tokens, tokens**2)
        trace.record_ffn(layer, rows, tokens, rows)
        if layer < 11:
            trace.overhead_macs[rows] += reducer.off_ramps[0].macs
            trace.record_exit(layer, (exits == layer).nonzero().squeeze(1))
    return trace


# Exit rule -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_threshold_0_never_exits(mode):
    """[1] Every text runs all layers; logits are those of the dense model, bit for bit."""
    batch = make_batch()
    output, dense = evaluate(deebert(0.0), batch, mode), evaluate(tiny_reducer("dense"), batch, mode)
    assert (output.trace.exit_layers == 2).all() and not output.trace.exited.any()
    assert torch.equal(output.logits, dense.logits)


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_a_threshold_above_the_largest_entropy_exits_at_once(mode):
    """[2] Above ln(classes), every text leaves after the first layer with its off-ramp's logits."""
    reducer, batch = deebert(math.log(3) + 1e-6), make_batch()
    output = evaluate(reducer, batch, mode)
    assert (output.trace.exit_layers == 0).all() and output.trace.exited.all()
    with torch.no_grad():
        first_layer = tiny_model("bert")(**batch, output_hidden_states=True).hidden_states[1]
        torch.testing.assert_close(output.logits, reducer.off_ramps[0](first_layer[:, 0]), **TIGHT)


def test_a_higher_threshold_never_exits_later():
    """[3] For each text, over the thresholds of the public sweep."""
    reducer, batch, exits = deebert(0.0), make_batch(tuple(range(1, 31))), []
    for threshold in (*SWEEP, 0.9, 1.1):
        reducer.set_options(threshold=threshold)
        exits.append(evaluate(reducer, batch).trace.exit_layers)
    exits = torch.stack(exits)
    assert (exits.diff(dim=0) <= 0).all()
    assert len(exits.unique()) == 3


def test_entropy():
    """[4] In [0, ln C]; ln C for uniform logits; blind to a constant; 0, not NaN, for a certain prediction."""
    logits = 10 * torch.randn(1000, 5)
    values = entropy(logits)
    assert (values >= 0).all() and (values <= math.log(5) + 1e-6).all()
    torch.testing.assert_close(entropy(logits + 100), values, rtol=1e-4, atol=1e-5)
    assert entropy(torch.full((3,), 7.0)).item() == pytest.approx(math.log(3))
    assert entropy(torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])).tolist() == [0.0, 0.0]
    assert entropy(torch.tensor([60000.0, 0.0], dtype=torch.float16)).item() == 0.0
    assert entropy(torch.tensor([0.0, math.log(3)])).item() == pytest.approx(0.5623351446)  # q = 1/4, 3/4


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_the_comparison_is_strict(mode):
    """Section 2: a text leaves where its entropy is below the threshold, not where it equals it."""
    reducer, batch = deebert(0.6), make_batch()
    for ramp in reducer.off_ramps:
        torch.nn.init.zeros_(ramp.classifier.weight)  # every entropy is ln 3
    reducer.set_options(threshold=entropy(torch.zeros(3)).item())
    assert not evaluate(reducer, batch, mode).trace.exited.any()
    reducer.set_options(threshold=math.nextafter(math.log(3), 2) + 1e-6)
    assert evaluate(reducer, batch, mode).trace.exited.all()


def test_a_batch_gives_what_single_texts_give():
    """[5] Predictions and exits in input order, although texts leave the batch one by one."""
    reducer, lengths = deebert(0.6), tuple(1 + 7 * i % 20 for i in range(32))
    together = evaluate(reducer, make_batch(lengths))
    assert len(together.trace.exit_layers.unique()) == 3
    for row, length in enumerate(lengths):
        alone = evaluate(reducer, make_batch((length,)))
        torch.testing.assert_close(alone.logits[0], together.logits[row], **TIGHT)
        assert alone.trace.exit_layers[0] == together.trace.exit_layers[row]


def test_one_threshold_per_layer():
    """Section 2: a list works too, and is checked against the number of off-ramps."""
    reducer, batch = deebert((0.0, 2.0)), make_batch()
    assert evaluate(reducer, batch).trace.exit_layers.tolist() == [1] * 5
    reducer.set_options(threshold=(2.0, 0.0))
    assert evaluate(reducer, batch).trace.exit_layers.tolist() == [0] * 5
    with pytest.raises(ValueError, match="threshold has 3 values for 2 off-ramps"):
        methods.create("deebert", tiny_model("bert"), threshold=(0.1, 0.2, 0.3))


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_the_released_code_asks_an_untrained_ramp_after_the_last_layer(mode):
    """Pitfall 1: only with `last_ramp`; its answer replaces the model's own, and stage 2 does not train it."""
    batch = make_batch()
    reducer = methods.create("deebert", tiny_model("bert"), last_ramp=True, threshold=(0.0, 0.0, 2.0)).double().eval()
    output = evaluate(reducer, batch, mode)
    assert (output.trace.exit_layers == 2).all() and output.trace.exited.all()
    with torch.no_grad():
        last = tiny_model("bert")(**batch, output_hidden_states=True).hidden_states[3][:, 0]
        torch.testing.assert_close(output.logits, reducer.off_ramps[2](last), **TIGHT)
    layer, ramp = 12 * (4 * 32 * 32 + 2 * 12 * 32 + 2 * 32 * 48), 32 * 32 + 3 * 32
    assert int(reducer.macs(output.trace)[4]) == 3 * layer + 3 * ramp
    reducer.train().begin_stage(reducer.stages(RTE)[1], 10)
    reducer(**batch, **labels_for(reducer, batch)).loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in reducer.off_ramps[2].parameters())
    assert all(p.grad.any() for p in reducer.off_ramps[1].parameters())


@pytest.mark.parametrize("options", [{"threshold": 0.1}, {"threshold": 0.0}])
def test_one_output_is_refused(options):
    """[11] The entropy of a single logit is always 0."""
    with pytest.raises(ValueError, match="deebert does not support regression: the entropy of a single output"):
        methods.create("deebert", tiny_model("bert", "regression"), **options)


@pytest.mark.parametrize("threshold", [-1.0, math.nan, math.inf, (0.1, -0.2)])
def test_bad_thresholds_are_refused(threshold):
    """Pitfall 7: the released default of -1 silently never exits."""
    with pytest.raises(ValueError, match="threshold must be >= 0 nats, got"):
        methods.create("deebert", tiny_model("bert"), threshold=threshold)


# Training ------------------------------------------------------------------------------------------------------------


def test_stage_1_trains_the_model_as_if_there_were_no_ramps():
    """Section 2: L_1 is the cross-entropy of the model's own head alone."""
    reducer, batch = undropped(), make_batch()
    reducer.begin_stage(reducer.stages(RTE)[0], 10)
    output = reducer(**batch, **labels_for(reducer, batch))
    output.loss.backward()
    stock = tiny_model("bert")(**batch, **labels_for(reducer, batch))
    assert output.loss.item() == pytest.approx(stock.loss.item(), rel=1e-6)
    assert all(p.grad is None or not p.grad.any() for p in reducer.off_ramps.parameters())


def test_stage_2_leaves_the_model_alone():
    """[6] Embeddings, layers, pooler and classifier stay as they are, and so does the score at threshold 0."""
    reducer, batch = deebert(0.0), make_batch()
    before = {name: value.clone() for name, value in reducer.state_dict().items()}
    logits = evaluate(reducer, batch).logits
    train(reducer, reducer.stages(RTE)[1])
    for name, value in reducer.state_dict().items():
        assert torch.equal(value, before[name]) is name.startswith("model."), name
    assert torch.equal(evaluate(reducer, batch).logits, logits)


def test_ramps_do_not_disturb_each_other():
    """[7] The gradient of L_2 in one off-ramp is that of its own cross-entropy."""
    reducer, batch = undropped(), make_batch()
    labels = labels_for(reducer, batch)["labels"]
    reducer.begin_stage(reducer.stages(RTE)[1], 10)
    reducer(**batch, labels=labels).loss.backward()
    with torch.no_grad():
        hidden = tiny_model("bert")(**batch, output_hidden_states=True).hidden_states
    for ramp, states in zip(reducer.off_ramps, hidden[1:3], strict=True):
        loss = torch.nn.functional.cross_entropy(ramp(states[:, 0]), labels)
        for parameter, alone in zip(ramp.parameters(), torch.autograd.grad(loss, ramp.parameters()), strict=True):
            torch.testing.assert_close(parameter.grad, alone, rtol=1e-5, atol=1e-7)  # the loss is float32


def test_the_loss_is_a_sum_over_ramps():
    """[8] Equal ramps on equal states give (layers - 1) times the loss of one; the last layer is not in it."""
    reducer, batch = undropped(), make_batch()
    for layer in reducer.backbone.layers:  # both blocks add nothing, so every layer's output is its input
        for dense in (layer.attention.output.dense, layer.output.dense):
            torch.nn.init.zeros_(dense.weight)
            torch.nn.init.zeros_(dense.bias)
    reducer.off_ramps[1].load_state_dict(reducer.off_ramps[0].state_dict())
    reducer.begin_stage(reducer.stages(RTE)[1], 10)
    labels = labels_for(reducer, batch)["labels"]
    loss = reducer(**batch, labels=labels).loss
    with torch.no_grad():
        first = reducer.off_ramps[0](reducer.model.bert.embeddings(batch["input_ids"])[:, 0])
    one = torch.nn.functional.cross_entropy(first, labels)
    assert loss.item() == pytest.approx(2 * one.item(), rel=1e-6)


def test_ramps_start_from_the_pre_trained_pooler():
    """[13] At the start of stage 1 and, although the main pooler has moved, of stage 2; classifiers start random."""
    model = tiny_model("bert").float()
    pooler = {name: value.clone() for name, value in model.bert.pooler.dense.state_dict().items()}
    reducer = methods.create("deebert", model)

    def untouched(dense):
        return all(torch.equal(dense.state_dict()[name], value) for name, value in pooler.items())

    assert all(untouched(ramp.dense) for ramp in reducer.off_ramps)
    weights = torch.stack([ramp.classifier.weight for ramp in reducer.off_ramps])
    assert weights.std().item() == pytest.approx(0.02, rel=0.2) and not torch.equal(*weights)
    train(reducer, reducer.stages(RTE)[0])
    assert not untouched(reducer.model.bert.pooler.dense)
    assert all(untouched(ramp.dense) for ramp in reducer.off_ramps)


@pytest.mark.parametrize(("family", "epochs"), [("bert", 3), ("roberta", 10)])
def test_published_recipe(family, epochs):
    """Section 3: the same for all tasks; fine-tune, then off-ramps only."""
    reducer = tiny_reducer("deebert", family)
    stages = reducer.stages(RTE)
    assert [stage.start for stage in stages] == ["pretrained", "previous"]
    for stage in stages:
        (group,) = stage.groups
        assert (stage.epochs, group.learning_rate, stage.batch_size) == (epochs, 2e-5, 8)
        assert (stage.warmup, stage.decay, stage.max_grad_norm, stage.adam_epsilon) == (0.0, "linear", 1.0, 1e-8)
        assert stage.select == "last" and group.weight_decay == 0
    ((_, trained),) = assign_parameters(reducer, stages[1].groups)
    assert {id(p) for p in trained} == {id(p) for p in reducer.off_ramps.parameters()}


# Cost ----------------------------------------------------------------------------------------------------------------


def test_exits_and_executed_layers_add_up():
    """[9] Exits add up to the texts; the share of layers executed lies in [1/L, 1]."""
    reducer, batch = deebert(0.6), make_batch(tuple(range(1, 31)))
    for threshold in (0.0, 0.6, 2.0):
        reducer.set_options(threshold=threshold)
        trace = evaluate(reducer, batch).trace
        histogram = torch.bincount(trace.exit_layers, minlength=3)
        assert histogram.sum() == 30
        executed = (trace.ffn_tokens > 0).sum()
        assert executed == (histogram * torch.tensor([1, 2, 3])).sum()
        assert 1 / 3 <= executed / (3 * 30) <= 1
        assert torch.equal((trace.ffn_tokens > 0).sum(dim=1), trace.exit_layers + 1)


def test_padding_gives_no_bonus():
    """[10] For one histogram of exits, the ratio to the dense model is the same at 64 and 128 tokens, within 0.1 %."""
    reducer, histogram = base_model(), [2, 0, 3, 1, 0, 4, 2, 2, 1, 0, 3, 5]
    never = trace_of(reducer, [0] * 11 + [23], 20)
    never.overhead_macs.zero_()
    ratios = {}
    for n in (64, 128):
        trace = trace_of(reducer, histogram, 20)
        ratios[n] = (reducer.macs(never, "sequence", n).sum() / reducer.macs(trace, "sequence", n).sum()).item()
    assert ratios[64] == pytest.approx(ratios[128], rel=1e-3)
    layers = 12 * 23 / sum((e + 1) * count for e, count in enumerate(histogram))
    assert ratios[128] == pytest.approx(layers, rel=2e-3)


def test_cost_by_exit_layer():
    """Section 4: e layers, e off-ramps (L - 1 at most), the head only at the end; at S = 0 a "speed-up" of 0.9994."""
    reducer, n = base_model(), 128
    layer, ramp = 931_135_488, 768 * 768 + 2 * 768
    trace = trace_of(reducer, [1] * 12, n)
    expected = [e * layer + min(e, 11) * ramp + (e == 12) * ramp for e in range(1, 13)]
    assert reducer.macs(trace).tolist() == expected
    assert round((12 * layer + ramp) / expected[-1], 4) == 0.9994


@pytest.mark.parametrize(("classes", "parameters"), [(2, 592_130), (3, 592_899)])
def test_off_ramp_parameters(classes, parameters):
    """[12] And there is one for every layer but the last."""
    ramp = OffRamp(torch.nn.Linear(768, 768), classes, 0.1)
    assert sum(p.numel() for p in ramp.parameters()) == parameters
    assert ramp.dropout.p == 0.1
    assert len(base_model().off_ramps) == 11


def test_no_layer_runs_past_the_exit():
    """[14] Rows that each layer really computed equal the histogram of exits."""
    reducer, batch, calls = deebert(0.6), make_batch((8,) * 24), []
    batch["input_ids"] = torch.randint(5, 60, (24, 8))
    for layer in reducer.backbone.layers:
        layer.intermediate.register_forward_hook(lambda module, arguments, out: calls.append(len(out) // 8))
    trace = evaluate(reducer, batch).trace
    histogram = torch.bincount(trace.exit_layers, minlength=3)
    assert (histogram > 0).all()
    assert calls == [24, 24 - int(histogram[0]), int(histogram[2])]
    calls.clear()
    reducer.set_options(threshold=2.0)
    evaluate(reducer, batch)
    assert calls == [24]
