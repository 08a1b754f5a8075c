"""Training loop, schedules, evaluation and cost totals on tiny models."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import methods
from benchmarks.data import Feature
from benchmarks.evaluate import evaluate
from benchmarks.flops import CostTotals, equal_cost_schedule
from benchmarks.tasks import get_task
from benchmarks.train import Compute, train_stage, updates_of
from methods import ParameterGroup, Stage
from methods.deformer import ONCE, WARM
from methods.recipes import assign_parameters, peak_rate, rate_factor
from tests.cases import CASES
from tests.tiny import LENGTHS, batch_for, make_batch, tiny_model, tiny_reducer

EQUAL = methods.Trial(score=0.5, macs=1.0, dense_macs=1.0)
STAGE = Stage(name="skim", epochs=1, groups=(ParameterGroup(learning_rate=1e-2),), batch_size=4)


def features(count: int = 16) -> list[Feature]:
    """Pairs of texts; the second token of the first decides the label."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for index in range(count):
        length = 4 + index % 6
        ids = torch.randint(5, 40, (length,), generator=generator).tolist()
        ids[1] = 41 + index % 3
        feature = Feature(index=index, input_ids=ids, label=index % 3, truncated=False)
        feature["token_type_ids"] = [int(i >= length // 2) for i in range(length)]
        feature["relevant"] = [i == 1 for i in range(length)]
        made.append(feature)
    return made


def fresh(name: str = "transkimmer", **options: object) -> methods.TokenReducer:
    model = tiny_model("bert").float()
    torch.manual_seed(0)
    return methods.create(name, model, **options)


@pytest.mark.parametrize(
    ("epochs", "rows", "least", "expected"), [(3, 10, 0, 9), (0.5, 16, 0, 2), (1, 3, 7, 7), (0, 99, 5, 0)]
)
def test_updates_of_a_stage(epochs, rows, least, expected):
    assert updates_of(STAGE.but(epochs=epochs, min_updates=least), rows) == expected


@pytest.mark.parametrize("updates", [4, 40])
def test_a_group_that_must_travel_does_so_in_any_number_of_updates(updates):
    group, stage = ParameterGroup(travel=0.5), STAGE.but(warmup=0.1)
    rates = [peak_rate(stage, updates, group) * rate_factor(stage, u, updates, group) for u in range(updates)]
    assert sum(rates) == pytest.approx(0.5)
    moved = train_one(stage.but(groups=(replace(group, patterns=("predictors.0.*",)),), epochs=updates / 4))
    assert 0.2 < moved.abs().max() < 0.6  # Adam steps by about the rate while a gradient keeps its sign


def test_learning_rate_schedules_by_hand():
    warm = STAGE.but(warmup=0.2)
    assert [rate_factor(warm, u, 10) for u in (0, 1, 2, 6, 9)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.125])
    assert rate_factor(warm.but(decay="linear_unshifted"), 2, 10) == pytest.approx(0.7)
    assert rate_factor(warm.but(decay="constant"), 9, 10) == 1.0


def test_groups_take_the_first_match_and_freeze_the_rest():
    reducer = fresh()
    groups = (
        ParameterGroup(patterns=("predictors.0.*",), learning_rate=1.0),
        ParameterGroup(patterns=("predictors.*",), learning_rate=2.0),
    )
    (first, mine), (_, others) = assign_parameters(reducer, groups)
    assert first is groups[0] and len(mine) * 2 == len(others)
    assert not any(p.requires_grad for p in reducer.model.parameters())
    with pytest.raises(ValueError, match=r"no parameter of TranskimmerForSequenceClassification matches off_ramps\.\*"):
        assign_parameters(reducer, (ParameterGroup(patterns=("off_ramps.*",), learning_rate=1.0),))


@pytest.mark.parametrize("name", CASES)
def test_every_method_trains_its_short_recipe(name):
    task = SimpleNamespace(name="sst2", kind="classification", skim_weight=0.3, sequence_length=16)
    options = {"keep_schedule": (0.9, 0.7, 0.5)} if name == "random" else {}
    reducer = fresh(name, **(methods.lookup(name).task_options(task, "short") | options))
    for stage in reducer.stages(task, "short"):
        before = {key: value.clone() for key, value in reducer.state_dict().items()}
        stage = stage.but(epochs=1, batch_size=8)
        result = train_stage(reducer, stage, features(), 0, seed=1, compute=Compute(), trial=lambda _: EQUAL)
        assert result["updates"] == 2 and all(torch.isfinite(torch.tensor(list(result["loss_terms"].values()))))
        assert any(not torch.equal(before[key], value) for key, value in reducer.state_dict().items() if key in before)
    assert not reducer.training and reducer.stage is None


def test_training_repeats_bit_for_bit():
    weights = []
    for _ in range(2):
        reducer = fresh()
        train_stage(reducer, STAGE, features(), 0, seed=7, compute=Compute())
        weights.append(reducer.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_best_epoch_is_kept():
    scores = iter((0.2, 0.9, 0.1))
    seen: list[dict[str, torch.Tensor]] = []

    def trial(reducer: methods.TokenReducer) -> methods.Trial:
        seen.append({key: value.clone() for key, value in reducer.state_dict().items()})
        return methods.Trial(score=next(scores), macs=1.0, dense_macs=1.0)

    reducer = fresh()
    best_of_3 = STAGE.but(epochs=3, select="best")
    outcome = train_stage(reducer, best_of_3, features(), 0, seed=1, compute=Compute(), trial=trial)
    assert outcome["held_out_scores"] == [0.2, 0.9, 0.1]
    assert all(torch.equal(seen[1][key], value) for key, value in reducer.state_dict().items())
    assert not torch.equal(seen[2]["model.classifier.weight"], reducer.state_dict()["model.classifier.weight"])


def test_unselectable_weights_are_never_the_best(monkeypatch):
    scores, allowed = iter((0.2, 0.1)), iter((False, True, True))
    reducer = fresh()
    monkeypatch.setattr(type(reducer), "selectable", lambda self: next(allowed))
    kept: list[dict[str, torch.Tensor]] = []

    def trial(candidate: methods.TokenReducer) -> methods.Trial:
        kept.append({key: value.clone() for key, value in candidate.state_dict().items()})
        return methods.Trial(score=next(scores), macs=1.0, dense_macs=1.0)

    best_of_3 = STAGE.but(epochs=3, select="best")
    outcome = train_stage(reducer, best_of_3, features(), 0, seed=1, compute=Compute(), trial=trial)
    assert outcome["held_out_scores"] == [None, 0.2, 0.1]
    assert len(kept) == 2 and all(torch.equal(kept[0][key], value) for key, value in reducer.state_dict().items())


def test_a_search_follows_the_training_of_its_stage_and_is_recorded(monkeypatch):
    reducer = fresh()

    def search(self, stage, trial):
        assert not self.training and stage.name == "skim"
        return {"speedup": trial().speedup}

    monkeypatch.setattr(type(reducer), "search", search)
    found = train_stage(
        reducer,
        STAGE.but(search=True),
        features(),
        0,
        seed=1,
        compute=Compute(),
        trial=lambda candidate: methods.Trial(score=1.0, macs=2.0, dense_macs=6.0),
    )
    assert found["search"] == {"speedup": 3.0}
    with pytest.raises(ValueError, match="held-out training rows, and none were given"):
        train_stage(reducer, STAGE.but(search=True), features(), 0, seed=1, compute=Compute())


def test_a_group_climbs_keeps_its_rate_and_leaves_names_out():
    reducer = fresh()
    groups = (
        ParameterGroup(patterns=("predictors.0.*",), learning_rate=1e-3, maximize=True, decay="constant"),
        ParameterGroup(patterns=("*",), but_not=("*embeddings*",), learning_rate=1e-3),
    )
    owned = [names for _, names in assign_parameters(reducer, groups)]
    assert len(owned[0]) == len(list(reducer.predictors[0].parameters()))
    assert not reducer.model.bert.embeddings.word_embeddings.weight.requires_grad
    assert rate_factor(STAGE.but(warmup=0.5), 1, 10, groups[0]) == 1.0
    before = reducer.model.bert.embeddings.word_embeddings.weight.clone()
    stage = Stage(name="skim", epochs=1, groups=groups, batch_size=16)
    up = train_one(stage.but(groups=(groups[0],)))
    down = train_one(stage.but(groups=(ParameterGroup(patterns=("predictors.0.*",), learning_rate=1e-3),)))
    assert torch.equal(before, reducer.model.bert.embeddings.word_embeddings.weight)
    torch.testing.assert_close(up, -down, rtol=1e-3, atol=1e-5)
    assert up.abs().max() > 1e-4


def train_one(stage: Stage) -> torch.Tensor:
    """How one update moves the weights of the first predictor."""
    reducer = fresh()
    weight = reducer.predictors[0][1].weight
    before = weight.detach().clone()
    train_stage(reducer, stage, features(), 0, seed=1, compute=Compute())
    return weight.detach() - before


def test_a_loss_that_is_not_finite_ends_the_run():
    reducer = fresh()
    reducer.model.classifier.weight.data.fill_(float("nan"))
    with pytest.raises(ArithmeticError, match=r"not finite in stage skim .*lower the learning rate"):
        train_stage(reducer, STAGE, features(), 0, seed=1, compute=Compute())


def test_bfloat16_autocast_trains_and_stays_near_float32():
    losses = {}
    for dtype in ("float32", "bfloat16"):
        reducer = fresh("dense")
        losses[dtype] = train_stage(reducer, STAGE.but(epochs=2), features(), 0, seed=1, compute=Compute(dtype=dtype))
        assert reducer.model.classifier.weight.dtype == torch.float32
    terms = [result["loss_terms"]["task"] for result in losses.values()]
    assert terms[0] != terms[1] and terms[0] == pytest.approx(terms[1], rel=0.1)


def test_evaluation_scores_costs_and_retention():
    reducer = tiny_reducer("random").float()
    task = replace(get_task("synthetic_pair"), num_labels=3, label_names=("a", "b", "c"))
    data = features(40)
    result = evaluate(reducer, data, task, 0, compute=Compute())
    right = sum(int(p == f["label"]) for p, f in zip(result.predictions, data, strict=True))
    assert result.scores["accuracy"] == pytest.approx(right / 40)
    with torch.no_grad():
        kept = torch.zeros(3)
        for feature in data:
            trace = reducer(torch.tensor([feature["input_ids"]])).trace
            kept += trace.keep_masks[0, :, 1]
    assert result.retention == pytest.approx((kept / 40).tolist())


def test_cost_totals_by_hand():
    """Dense, deebert-like and token methods on two batches, against sums of `macs` and `dense_macs`."""
    reducer = tiny_reducer("transkimmer")
    totals = CostTotals(sequence_length=20)
    expected = dict.fromkeys(("none", "batch", "sequence"), 0)
    method = 0
    for lengths in (LENGTHS, (3, 5)):
        with torch.no_grad():
            trace = reducer(**batch_for(reducer, lengths)).trace
        totals.add(reducer, trace)
        method += int(reducer.macs(trace).sum())
        for padding, widths in (
            ("none", lengths),
            ("batch", [max(lengths)] * len(lengths)),
            ("sequence", [20] * len(lengths)),
        ):
            expected[padding] += int(reducer.backbone.dense_macs(torch.tensor(widths)).sum())
    summary = totals.summary()
    for padding, dense in expected.items():
        assert summary["padding"][padding]["speedup"] == pytest.approx(dense / method)
        assert summary["padding"][padding]["speedup_of_unpadding_alone"] == pytest.approx(dense / expected["none"])
    assert summary["texts"] == 7 and sum(summary["exits"]) == 7 and summary["exits"][-1] == 7


def test_other_accounts_of_cost_stand_beside_the_executed_one():
    """Sums of `extra_costs` under each padding, against the dense cost there; none for other methods."""
    reducer, totals = tiny_reducer("deformer"), CostTotals(sequence_length=20)
    traces = []
    for lengths in (LENGTHS, (3, 5)):
        with torch.no_grad():
            traces.append(reducer(**batch_for(reducer, lengths)).trace)
        totals.add(reducer, traces[-1])
    summary = totals.summary()
    for padding in ("none", "sequence"):
        lengths = [t.input_lengths if padding == "none" else torch.full_like(t.input_lengths, 20) for t in traces]
        dense = [reducer.backbone.dense_macs(length) for length in lengths]
        costs = [reducer.extra_costs(trace, length) for trace, length in zip(traces, lengths, strict=True)]
        found = summary["padding"][padding]["extra"]
        assert list(found) == [WARM, ONCE]
        for name, account in found.items():
            macs = torch.cat([cost[name] for cost in costs])
            assert account["method_gmacs_mean"] == pytest.approx(float(macs.sum()) / 7 / 1e9)
            assert account["speedup"] == pytest.approx(float(torch.cat(dense).sum() / macs.sum()))
            assert account["speedup_mean_of_ratios"] == pytest.approx(float((torch.cat(dense) / macs).mean()))
        assert found[ONCE]["speedup"] == summary["padding"][padding]["speedup"] < found[WARM]["speedup"]
    plain = CostTotals(sequence_length=20)
    plain.add(tiny_reducer("dense"), traces[0])
    assert "extra" not in plain.summary()["padding"]["none"]


def test_dense_macs_are_the_dense_reducers():
    for family in ("bert", "albert", "electra"):
        reducer = tiny_reducer("dense", family)
        with torch.no_grad():
            trace = reducer(**batch_for(reducer)).trace
        assert torch.equal(reducer.macs(trace), reducer.backbone.dense_macs(trace.input_lengths))
        assert torch.equal(reducer.macs(trace, "sequence", 30), reducer.backbone.dense_macs(torch.full((5,), 30)))


def test_random_at_the_equal_cost_schedule_costs_the_same():
    """Long texts, so that rounding up to whole tokens hardly counts."""
    method = tiny_reducer("power_bert")
    method.set_options(retention_configuration=(24, 16, 8))
    batch = make_batch((32,) * 8)
    totals = CostTotals(sequence_length=32)
    with torch.no_grad():
        totals.add(method, method(**batch).trace)
    twin = methods.create("random", tiny_model("bert"), keep_schedule=equal_cost_schedule(totals.summary()))
    with torch.no_grad():
        trace = twin(**batch).trace
    assert float(twin.macs(trace).sum() / method.macs(method(**batch).trace).sum()) == pytest.approx(1.0, abs=0.03)
