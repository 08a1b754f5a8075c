"""A user's rows, a model and a wished-for speed-up: train, turn the method's knob, score, time, save."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import methods
from benchmarks.data import LABELS, Feature, batches, collate, count_texts
from benchmarks.environment import machine
from benchmarks.evaluate import Evaluation, evaluate
from benchmarks.experiment_data import evaluation_features, padding_id, training_features
from benchmarks.experiments import Experiment, Setting, plan, work
from benchmarks.files import writing
from benchmarks.models import ModelRef, load_tokenizer
from benchmarks.own_rows import OwnTask
from benchmarks.progress import RunProgress
from benchmarks.running import run, trained
from benchmarks.runs import Record, RunStore
from benchmarks.speed_search import NEAR, Point, choose, search
from benchmarks.timing import interleave, ratio_range
from methods import Knob, TokenReducer

KIND = "accelerate"
PRESSES = 20  # trials that cost an evaluation only
ROUNDS, TIMED_TEXTS = 7, {1: 32, 32: 128}  # by batch size
SUMMARY = "accelerate.json"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is wanted. `target`: times fewer FLOPs, without padding; `trials`: trainings of the method at most."""

    own: OwnTask
    model: ModelRef
    setting: Setting
    method: str
    target: float
    seed: int
    trials: int

    @property
    def knob(self) -> Knob:
        """The method's."""
        knob = methods.lookup(self.method).traits.knob
        if knob is None:
            raise ValueError(f"{self.method} has no knob to choose a speed-up with")
        return knob

    def experiment(self, method: str, **options: Any) -> Experiment:
        """A run on the user's rows, some held out to choose on."""
        return plan(self.setting, self.model, self.own.task, method, self.seed, options=options, held_out=True)

    @property
    def usual(self) -> Any:
        """The knob as the recipe has it, whether it sets it for the task or leaves the default."""
        options = methods.lookup(self.method).options_class(**self.experiment(self.method).options)
        return getattr(options, self.knob.option)

    @property
    def units(self) -> float:
        """About how much work it is, as `RunProgress` counts."""
        rows, trainings = (self.own.train_rows, self.own.score_rows), 1 if self.knob.after_training else 4
        one = work(self.experiment(self.method), *rows)
        return work(self.experiment("dense"), *rows) + min(trainings, self.trials) * one


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The chosen reducer, the trials that led to it, and the record of both it and the dense model on other rows."""

    reducer: TokenReducer
    points: list[Point]
    record: Record


def accelerate(goal: Goal, store: RunStore, progress: RunProgress) -> Outcome:
    """Train the dense model and the method, choose the setting nearest to the target, score and time both."""
    progress.start_run("dense model")
    dense = trained(goal.experiment("dense"), store, progress.advance)
    experiment, reducer, points = (_turn if goal.knob.after_training else _train_anew)(goal, store, progress)
    progress.start_run("scoring and timing")
    chosen = choose(points, goal.target)
    config = replace(
        experiment.config(),
        kind=KIND,
        options=reducer.options.recorded(),
        extra={
            "trained": experiment.config().hash,
            "target_speedup": goal.target,
            "trials": len(points),
            "threads": torch.get_num_threads(),
            "machine": machine(goal.setting.compute.device),
        },
    )
    record = store.run(config, lambda: _compare(goal, dense, reducer, chosen, points))
    return Outcome(reducer=reducer, points=points, record=record)


def _turn(goal: Goal, store: RunStore, progress: RunProgress) -> tuple[Experiment, TokenReducer, list[Point]]:
    """Methods whose knob works after training: train once, evaluate at several pressures."""
    experiment = goal.experiment(goal.method)
    progress.start_run(goal.method)
    reducer = trained(experiment, store, progress.advance)

    def trial(pressure: float) -> Point:
        reducer.press(pressure)
        return _point(goal, experiment, reducer, progress)

    points = list(search(goal.target, trial, start=0.5, trials=PRESSES, stop=NEAR / 10).values())
    for outcome in run(experiment, store)["metrics"]["training"]:
        for options, score, speedup in reducer.operating_points(outcome["search"]) if "search" in outcome else ():
            points.append(Point(speedup=speedup, score=score, options=options))
    reducer.set_options(**choose(points, goal.target).options)
    return experiment, reducer, points


def _train_anew(goal: Goal, store: RunStore, progress: RunProgress) -> tuple[Experiment, TokenReducer, list[Point]]:
    """Methods that learn what to drop: one training per pressure, each a run of its own with a record.

    A training that fails, its loss no longer finite, is none to choose, and counts as too much pressure.
    """
    option, usual = goal.knob.option, goal.usual
    start = goal.knob.pressure(usual)
    failed: list[RuntimeError] = []

    def at(pressure: float) -> Experiment:
        return goal.experiment(goal.method, **{option: usual if pressure == start else goal.knob.at(pressure)})

    def trial(pressure: float) -> Point:
        experiment = at(pressure)
        progress.start_run(f"{goal.method}, {option} {experiment.options[option]:g}")
        try:
            reducer = trained(experiment, store, progress.advance)
        except RuntimeError as error:
            failed.append(error)
            progress.say(f"{error}; left out, and less pressure tried")
            return Point(speedup=math.inf, score=0.0)
        return _point(goal, experiment, reducer, progress)

    tried = search(goal.target, trial, start=start, trials=goal.trials)
    found = {pressure: point for pressure, point in tried.items() if point.speedup < math.inf}
    if not found:
        raise failed[-1]
    chosen = choose(found.values(), goal.target)
    experiment = at(next(pressure for pressure, point in found.items() if point is chosen))
    return experiment, trained(experiment, store), list(found.values())


def _point(goal: Goal, experiment: Experiment, reducer: TokenReducer, progress: RunProgress) -> Point:
    """How a reducer does, as it stands, on the rows to choose on."""
    result = _evaluated(goal, reducer, training_features(experiment)[1])
    options = {goal.knob.option: getattr(reducer.options, goal.knob.option)}
    point = Point(speedup=_cost(result)["speedup"], score=_score(goal, result), options=options)
    said = ", ".join(f"{name} {short(value)}" for name, value in options.items())
    progress.say(f"{said}: {point.speedup:.2f}x fewer FLOPs, {goal.own.task.metric} {100 * point.score:.1f} held out")
    return point


def short(value: Any) -> str:
    """An option's value for people."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# Scoring and timing ---------------------------------------------------------------------------------------------------


def _evaluated(goal: Goal, reducer: TokenReducer, features: list[Feature]) -> Evaluation:
    compute = goal.setting.compute
    reducer.to(compute.device)  # type: ignore[arg-type]  # transformers wraps `to`: without its `self` for type checkers
    return evaluate(reducer, features, goal.own.task, padding_id(goal.model), compute=compute)


def _cost(result: Evaluation) -> dict[str, Any]:
    return result.cost["padding"]["none"]


def _score(goal: Goal, result: Evaluation) -> float:
    return result.scores[goal.own.task.metric]


def _compare(
    goal: Goal, dense: TokenReducer, reducer: TokenReducer, chosen: Point, points: list[Point]
) -> dict[str, Any]:
    """What was gained and lost, on rows that neither training nor choosing saw."""
    task = goal.own.task
    features = evaluation_features(goal.experiment("dense"), task.eval_splits[0])
    before, after = _evaluated(goal, dense, features), _evaluated(goal, reducer, features)
    speedup = _cost(after)["speedup"]
    return {
        "metric": task.metric,
        "target_speedup": goal.target,
        "reached": abs(speedup / goal.target - 1) <= NEAR,
        "rows": goal.own.score_rows,
        "commonest_class": goal.own.commonest,
        "dense": {"score": _score(goal, before), "gmacs_mean": _cost(before)["dense_gmacs_mean"]},
        "reduced": {
            "score": _score(goal, after),
            "gmacs_mean": _cost(after)["method_gmacs_mean"],
            "speedup": speedup,
            "keep_ratio": after.cost["keep_ratio"],
        },
        "held_out": {"score": chosen.score, "speedup": chosen.speedup},
        "options": chosen.options,
        "trials": [vars(point) for point in points],
        "time": {str(size): _timed(goal, dense, reducer, features, size) for size in TIMED_TEXTS},
    }


def _timed(
    goal: Goal, dense: TokenReducer, reducer: TokenReducer, features: list[Feature], size: int
) -> dict[str, Any]:
    """Milliseconds per text, all its windows, in batches of `size`: stock with padding, dense without, reduced."""
    compute, pad_id = goal.setting.compute, padding_id(goal.model)
    chosen = [feature for feature in features if feature["index"] < TIMED_TEXTS[size]]
    texts = count_texts(chosen)
    whole = (compute.place(collate(chunk, pad_id)) for chunk in batches(chosen, size))
    made = [{name: tensor for name, tensor in batch.items() if name not in LABELS} for batch in whole]
    stock = dense.model.eval()
    ways: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
        "stock": lambda batch: stock(**(batch | {"attention_mask": batch["attention_mask"].long()})),
        "dense": lambda batch: dense(**batch),
        "reduced": lambda batch: reducer(**batch),
    }
    runs: dict[str, Callable[[], object]] = {name: partial(_over, way, made) for name, way in ways.items()}
    with compute.autocast(), torch.inference_mode():
        samples = interleave(runs, rounds=ROUNDS, device=compute.device)
    seconds = {name: one.wall_s for name, one in samples.items()}
    return {
        "texts": texts,
        "ms_per_text": {name: 1000 * statistics.median(one) / texts for name, one in seconds.items()},
        "speedup": ratio_range(seconds["dense"], seconds["reduced"]),
        "speedup_over_stock": ratio_range(seconds["stock"], seconds["reduced"]),
    }


def _over(way: Callable[[dict[str, torch.Tensor]], object], made: list[dict[str, torch.Tensor]]) -> None:
    for batch in made:
        way(batch)


# Saving ---------------------------------------------------------------------------------------------------------------


def save(goal: Goal, outcome: Outcome, folder: Path, command: str) -> dict[str, Any]:
    """Write the reducer, with the user's class names, the tokenizer and the summary, which is returned, to `folder`."""
    reducer, names = outcome.reducer.cpu(), dict(enumerate(goal.own.task.label_names))
    if names:
        for config in (reducer.config, reducer.model.config):
            config.id2label, config.label2id = names, {name: number for number, name in names.items()}
        reducer.config.backbone_config = reducer.model.config.to_dict()
    said = outcome.record["metrics"]
    reducer.note(
        task=goal.own.task.title,
        split=f"{said['rows']} rows that neither training nor choosing saw",
        metric=said["metric"],
        score=said["reduced"]["score"],
        dense_score=said["dense"]["score"],
        keep_ratio=said["reduced"]["keep_ratio"],
        gflops=2 * said["reduced"]["gmacs_mean"],
        dense_gflops=2 * said["dense"]["gmacs_mean"],
        padding="none",
        latency_ms=said["time"]["1"]["ms_per_text"]["reduced"],
        dense_latency_ms=said["time"]["1"]["ms_per_text"]["dense"],
        batch_size=1,
        device=goal.setting.compute.device,
        record=outcome.record["config_hash"],
        command=command,
    )
    summary = said | {
        "command": command,
        "method": goal.method,
        "model": goal.model.title,
        "columns": list(goal.own.columns),
        "max_length": goal.own.task.sequence_length,
        "record": outcome.record["config_hash"],
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        reducer.save_pretrained(folder)
        load_tokenizer(goal.model).save_pretrained(folder)
        (folder / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary
