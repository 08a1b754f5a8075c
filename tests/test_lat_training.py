"""LAT in training and in its search; invariants of the method notes, [10] is the tenth."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from types import SimpleNamespace

import moocore
import numpy as np
import pytest
import torch
import transformers

import methods
from benchmarks.data import Feature
from benchmarks.evaluate import evaluate
from benchmarks.tasks import get_task
from benchmarks.train import Compute, train_stage
from methods import Inputs, ParameterGroup, Stage, Trial
from methods.lat_search import LEAST, length_drop
from methods.recipes import FINE_TUNE
from tests.tiny import HEADS, labels_for, make_batch, tiny_config, tiny_model
from tests.told import run

QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
STAGE = Stage(name="length_drop", epochs=1, groups=(ParameterGroup(learning_rate=1e-3),), batch_size=8)


def lat(head="classification", **options):
    """On the tiny model without dropout, at lengths of 12, in training."""
    model = tiny_model("bert", head, **QUIET)
    return methods.create("lat", model, **({"max_length": 12, "layer_drop": 0.0} | options)).train()


def drawn(reducer, count):
    """Random passes of `count` draws, after seeding."""
    torch.manual_seed(0)
    return [part for _ in range(count) for part in reducer.draw_passes()[2:]]


def gradients(reducer):
    return {
        name: parameter.grad.clone() for name, parameter in reducer.named_parameters() if parameter.grad is not None
    }


# LengthDrop ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_drop", [0.0, 0.3])
def test_drawn_configurations(layer_drop):
    """[9] Non-increasing in [2, N]; an active layer keeps ceil((1 - p) l) to l, both ends occur; a skipped one all."""
    reducer = lat(max_length=40, layer_drop=layer_drop, length_drop=0.25)
    ends = set()
    for part in drawn(reducer, 400):
        before = 40
        for layer, length in enumerate(part.configuration):
            least = max(LEAST, math.ceil(0.75 * before))
            assert (length == before) if layer in part.skipped else (least <= length <= before)
            ends |= {"least"} if length == least else {"most"} if length == before else set()
            before = length
    assert ends == {"least", "most"}


@pytest.mark.parametrize(
    ("length", "layer_drop", "mean"), [(128, 0.0, 0.545), (128, 0.2, 0.614), (384, 0.0, 0.540), (384, 0.2, 0.608)]
)
def test_mean_length_of_drawn_configurations(length, layer_drop, mean):
    """[9] Section 2.3, 12 layers and p = 0.2, to 0.01."""
    with torch.device("meta"):
        model = transformers.BertForSequenceClassification(transformers.BertConfig())
        reducer = methods.create("lat", model, max_length=length, layer_drop=layer_drop)
    kept = [sum(part.configuration) / (12 * length) for part in drawn(reducer, 1500)]
    assert np.mean(kept) == pytest.approx(mean, abs=0.01)


def test_the_smallest_pass_and_the_full_one():
    """Section 2.5: one full, one smallest, then random ones; LayerDrop applies to each by a draw of its own."""
    reducer = lat(random_passes=3)
    full, smallest, *others = reducer.draw_passes()
    assert full.configuration is None and smallest.configuration == reducer.space.smallest and len(others) == 3
    reducer.set_options(layer_drop=0.5)
    torch.manual_seed(2)
    passes = [reducer.draw_passes() for _ in range(200)]
    for place in range(5):
        shares = np.mean([[layer in parts[place].skipped for layer in range(3)] for parts in passes], axis=0)
        assert (abs(shares - 0.5) < 0.12).all()
    assert len({parts[0].skipped == parts[1].skipped for parts in passes}) == 2
    smallest = [parts[1] for parts in passes]
    assert all(p.configuration == length_drop(reducer.space, 0.2, skipped=p.skipped) for p in smallest)


def test_skipped_layers_are_not_run():
    """Section 2.4; the trace of the full pass shows it."""
    reducer, batch = lat(layer_drop=1.0), make_batch()
    output = reducer(**batch, **labels_for(reducer, batch))
    assert output.trace.ffn_tokens.sum() == 0 and output.losses["distillation"].abs() < 1e-6


def test_layer_drop_ends_with_training():
    reducer, batch = lat(layer_drop=1.0).eval(), make_batch()
    assert (run(reducer, batch, "packed").trace.ffn_tokens > 0).all()


# Loss ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_without_random_passes_the_task_counts_half(head):
    """[10] Its term is the plain task loss of the full pass, over two passes."""
    reducer, batch = lat(head, random_passes=0), make_batch()
    labels = labels_for(reducer, batch)
    stock = methods.create("dense", tiny_model("bert", head, **QUIET)).train()(**batch, **labels)
    output = reducer(**batch, **labels)
    assert output.losses["task"].item() == pytest.approx(stock.loss.item() / 2, rel=1e-6)
    assert torch.equal(output.trace.ffn_tokens, stock.trace.ffn_tokens)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_passes_at_full_length_teach_nothing(head, direction):
    """[11] D = 0, and the gradient is the task's over the number of passes."""
    reducer, batch = lat(head, length_drop=0.0, kl_direction=direction), make_batch()
    labels = labels_for(reducer, batch)
    output = reducer(**batch, **labels)
    assert output.losses["distillation"].abs() < 1e-6
    output.loss.backward()
    dense = methods.create("dense", tiny_model("bert", head, **QUIET)).train()
    dense(**batch, **labels).loss.backward()
    expected = gradients(dense)
    for name, gradient in gradients(reducer).items():
        torch.testing.assert_close(gradient, expected[name] / 4, rtol=1e-4, atol=1e-7)


def test_divergences_by_hand():
    """[12] Full q = (3/4, 1/4), smaller p = (1/2, 1/2): sum of q log q/p forward, of p log p/q reverse."""
    full, smaller = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    for direction, expected in (
        ("forward", 0.75 * math.log(1.5) + 0.25 * math.log(0.5)),
        ("reverse", 0.5 * math.log(2 / 3) + 0.5 * math.log(2)),
    ):
        value = lat(kl_direction=direction).lesson(smaller, full, inputs(torch.tensor([0])))
        assert value.item() == pytest.approx(expected, rel=1e-5)


def inputs(labels):
    ids = torch.ones(len(labels), 2, dtype=torch.long)
    return Inputs(input_ids=ids, attention_mask=ids.bool(), position_ids=ids, labels=labels)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("head", HEADS)
def test_only_the_smaller_pass_learns(head, direction):
    """[12] D >= 0; the full pass's logits get the task's gradient alone, the smaller ones' that of D."""
    reducer, batch = lat(head, kl_direction=direction), make_batch()
    seen, original = [], reducer._encode

    def watch(batch_inputs, part):
        state, logits = original(batch_inputs, part)
        logits.retain_grad()
        seen.append(logits)
        return state, logits

    reducer._encode = watch
    output = reducer(**batch, **labels_for(reducer, batch))
    assert output.losses["distillation"] > 0
    output.losses["distillation"].backward()
    assert seen[0].grad is None and all(logits.grad.abs().sum() > 0 for logits in seen[1:])


def test_pads_of_spans_teach_nothing():
    """Divergences are over real positions: more padding changes none."""
    losses = []
    for width in (12, 20):
        reducer, batch = lat("span_qa"), make_batch(padded_to=width)
        torch.manual_seed(1)
        losses.append(reducer(**batch, **labels_for(reducer, batch)).losses["distillation"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0] > 0


def test_values_are_taught_by_squared_error():
    """Our extension: one logit has no distribution."""
    value = lat("regression").lesson(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [4.0]]), inputs(torch.ones(2)))
    assert value.item() == pytest.approx((1 + 4) / 2)


def test_several_labels_are_taught_one_by_one():
    """Our extension: the mean over labels of the divergence between two outcomes each."""
    reducer = lat()
    smaller, full = torch.tensor([[0.5, -1.0, 2.0]]), torch.tensor([[0.0, 1.0, 2.0]])
    p, q = smaller.sigmoid(), full.sigmoid()
    expected = (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).mean()
    value = reducer.lesson(smaller, full, inputs(torch.ones(1, 3)))
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


# Passes --------------------------------------------------------------------------------------------------------------


def features(count, seed=0, classes=3):
    """Texts of 12 to 20 tokens; eight of them have values, whose sum is the label where there are no classes."""
    generator, made = random.Random(seed), []
    for index in range(count):
        ids = [5, *(generator.randint(8, 39) for _ in range(generator.randint(11, 19)))]
        value = 0.0
        for position in generator.sample(range(1, len(ids)), 8):
            step = generator.randrange(16)
            ids[position] = 41 + step
            value += (step - 7.5) / 8
        label = value if classes == 1 else index % classes
        made.append(Feature(index=index, input_ids=ids, label=label, truncated=False))
    return made


@pytest.mark.parametrize("random_passes", [0, 1, 2])
def test_passes_and_steps_of_an_update(random_passes):
    """[13] n_s + 2 forward passes and one optimizer step per batch."""
    reducer = lat(random_passes=random_passes).float()
    passes, steps = [], []
    reducer.backbone.encoder.embeddings.register_forward_hook(lambda *_: passes.append(1))
    reducer.after_update = lambda: steps.append(1)
    train_stage(reducer, STAGE, features(24), 0, seed=1, compute=Compute())
    assert len(steps) == 3 and len(passes) == 3 * (random_passes + 2)


def test_fine_tuning_and_inputs_without_labels_are_one_plain_pass():
    reducer, batch = lat().float(), make_batch()
    assert reducer(**batch).losses is None
    reducer.begin_stage(STAGE.but(name=FINE_TUNE), 1)
    assert list(reducer(**batch, **labels_for(reducer, batch)).losses) == ["task"]


@pytest.mark.parametrize("chosen", [None, (8, 5, 3)])
def test_training_leaves_no_trace(chosen):
    """[20] Neither a pass nor one that failed: the next call is what the options say."""
    reducer, batch = lat(length_configuration=chosen), make_batch()
    before = run(reducer.eval(), batch, "packed").logits
    reducer.train()(**batch, **labels_for(reducer, batch))
    assert torch.equal(run(reducer.eval(), batch, "packed").logits, before)
    hook = reducer.backbone.layers[1].register_forward_hook(lambda *_: None)
    reducer.after_layer = lambda state: 1 / 0
    with pytest.raises(ZeroDivisionError):
        reducer.train()(**batch, **labels_for(reducer, batch))
    hook.remove()
    del reducer.after_layer
    assert torch.equal(run(reducer.eval(), batch, "packed").logits, before)


def test_ranking_is_noisy_only_in_training_and_only_if_asked():
    """Section 2.1: the public code ranks by what dropout left."""
    for asked in (False, True):
        reducer = lat(noisy_scores=asked)
        assert reducer.state_options().noisy_scores is asked
        assert reducer.eval().state_options().noisy_scores is False


# Search --------------------------------------------------------------------------------------------------------------


def scored(reducer, configuration):
    """A made-up trial: early layers matter most."""
    share = sum(configuration) / sum(reducer.space.full)
    return Trial(score=round(1 - (1 - share) ** 2, 2), macs=100 * share, dense_macs=100.0)


def searched(seed=0, **options):
    """What a search on made-up scores left in the options, and its record."""
    budget = {"search_iterations": 4, "search_seeds": 4, "mutants": 5, "crossovers": 5}
    reducer = lat(max_length=30, **(budget | options)).eval()
    torch.manual_seed(seed)
    found = reducer.search(STAGE, lambda: scored(reducer, reducer.options.length_configuration))
    return reducer.options.length_configuration, found


def test_the_search_sets_and_records_the_operating_point():
    chosen, found = searched(operating_point="best")
    assert chosen == found["chosen"]["configuration"] == found["front"][-1]["configuration"]
    assert [entry["macs"] for entry in found["front"]] == sorted(entry["macs"] for entry in found["front"])
    assert found["full"]["configuration"] == (30, 30, 30) and found["full"]["macs_share"] == 1.0
    assert found["tried"] <= 2 + 4 + 4 * 10 and len(found["areas"]) == 5
    assert searched(operating_point="best") == (chosen, found) and searched(seed=1)[1]["seed"] != found["seed"]


def test_more_pressure_costs_less():
    """The trade-off knobs are monotone: a larger tolerance, and a larger speed-up asked for."""
    reducer = lat(max_length=30)
    for knob, values in (("tolerance", (0.0, 0.02, 0.1, 0.5)), ("speedup", (1.0, 1.1, 1.2, 9.0))):
        rule = {"operating_point": "cheapest" if knob == "tolerance" else "speedup"}
        costs = [reducer.configuration_macs(searched(**rule, **{knob: value})[0]) for value in values]
        assert costs == sorted(costs, reverse=True) and costs[-1] < costs[0]


def test_absolute_counts_are_fast_in_padded_texts():
    """Their speed-up is that of texts padded to N, whatever the trial's short texts cost."""
    _, found = searched(counts="absolute")
    for entry in found["front"]:
        assert entry["speedup"] == pytest.approx(1 / entry["macs_share"])
    _, found = searched(counts="shares")
    assert any(abs(entry["speedup"] - 1 / entry["macs_share"]) > 1e-3 for entry in found["front"])


@pytest.fixture(scope="module")
def trained():
    """A six-layer model that learnt with LengthDrop, its trial, and the record of its search."""
    torch.manual_seed(0)
    config = tiny_config("bert", "regression", num_hidden_layers=6, initializer_range=0.1, **QUIET)
    reducer = methods.create(
        "lat",
        transformers.BertForSequenceClassification(config),
        **{"max_length": 20, "random_passes": 1, "length_drop": 0.3, "layer_drop": 0.0},
        **{"search_iterations": 4, "search_seeds": 5, "mutants": 6, "crossovers": 6},
    )
    rows, held_out = features(192, 0, classes=1), features(64, 1, classes=1)
    task = replace(get_task("vader_valence"), sequence_length=20)

    def trial(candidate):
        result = evaluate(candidate, held_out, task, 0, compute=Compute())
        cost = result.cost["padding"]["none"]
        return Trial(
            score=result.scores["pearson"], macs=cost["method_gmacs_mean"], dense_macs=cost["dense_gmacs_mean"]
        )

    learn = STAGE.but(groups=(ParameterGroup(learning_rate=3e-3),), batch_size=24, warmup=0.1, max_grad_norm=1.0)
    train_stage(reducer, learn.but(name=FINE_TUNE, epochs=15), rows, 0, seed=1, compute=Compute())
    train_stage(reducer, learn.but(epochs=5), rows, 0, seed=1, compute=Compute())
    find = Stage(name="search", epochs=0, search=True)
    return reducer, trial, train_stage(reducer, find, rows, 0, seed=1, compute=Compute(), trial=trial)["search"]


def points(entries):
    return np.array([(entry["macs"], entry["score"]) for entry in entries], dtype=float)


def test_the_front_of_a_six_layer_model_has_no_dominated_member(trained):
    """[15] Nor the chosen point, which scores no less than full length and costs less."""
    _, _, found = trained
    front = points(found["front"])
    assert moocore.is_nondominated(front, maximise=[False, True], keep_weakly=False).all() and len(front) > 2
    assert (np.diff(front, axis=0) > 0).all() and found["full"]["score"] > 0.8
    assert found["chosen"] in found["front"] and found["chosen"]["score"] >= found["full"]["score"]
    assert list(found["areas"]) == sorted(found["areas"])


def test_the_search_beats_as_many_random_configurations_on_a_six_layer_model(trained):
    """Hypervolume (moocore) of the front towards (cost of full length, 0), against uniform draws within its bounds."""
    reducer, trial, found = trained
    space, chosen = reducer.space, reducer.options.length_configuration
    least, most = (reducer.configuration_macs(ends) for ends in (space.smallest, space.full))
    rng, blind = random.Random(1), []
    while len(blind) < found["tried"]:
        made = tuple(sorted((rng.randint(LEAST, space.length) for _ in range(space.layers)), reverse=True))
        cost = reducer.configuration_macs(made)
        if least <= cost <= most:
            reducer.set_options(length_configuration=made)
            blind.append({"macs": cost, "score": trial(reducer).score})
    reducer.set_options(length_configuration=chosen)
    volumes = [
        moocore.hypervolume(points(entries), ref=[most, 0.0], maximise=[False, True])
        for entries in (found["front"], blind)
    ]
    assert volumes[0] > volumes[1]


# Recipe --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "length", "rate"), [("mnli", 128, 2e-5), ("squad_v2", 384, 5e-5)])
def test_published_recipe(task, length, rate):
    """Section 3: 3 epochs, 5 more with LengthDrop, then the search; the published budget is the default."""
    stub = SimpleNamespace(name=task, sequence_length=length)
    reducer = lat()
    assert reducer.task_options(stub) == {"max_length": length}
    fine_tune, drop, find = reducer.stages(stub)
    assert [stage.name for stage in (fine_tune, drop, find)] == [FINE_TUNE, "length_drop", "search"]
    assert [stage.start for stage in (fine_tune, drop, find)] == ["pretrained", "previous", "previous"]
    assert [(stage.epochs, stage.select, stage.search) for stage in (fine_tune, drop, find)] == [
        (3, "best", False),
        (5, "best", False),
        (0, "last", True),
    ]
    for stage in (fine_tune, drop):
        assert [group.learning_rate for group in stage.groups] == [rate] and stage.groups[0].weight_decay == 0.0
        assert (stage.batch_size, stage.warmup, stage.decay, stage.max_grad_norm) == (32, 0.0, "linear", 1.0)
        assert (stage.adam_betas, stage.adam_epsilon) == ((0.9, 0.999), 1e-8)
    plain = methods.create("lat", tiny_model("bert")).options
    assert (plain.length_drop, plain.layer_drop, plain.random_passes) == (0.2, 0.2, 2)
    budget = (plain.search_iterations, plain.search_seeds, plain.mutants, plain.crossovers, plain.mutation_probability)
    assert budget == (30, 20, 30, 30, 0.5)
