"""What a sweep will take: how many runs, and about how long, before any of them starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import methods
from benchmarks.experiment_data import data_identity
from benchmarks.experiments import Experiment
from benchmarks.pareto_runs import SCORED_PER_TRAINED, jobs_of, turned
from benchmarks.places import available_cores
from benchmarks.progress import duration

if TYPE_CHECKING:
    from rich.console import Console

    from benchmarks.cli import Session
    from benchmarks.runs import RunStore


@dataclass(frozen=True)
class Forecast:
    """Of a sweep: runs still to train and to score again, runs there already, seconds in all, a line per run."""

    to_train: int
    to_score: int
    there: int
    seconds: float
    lines: tuple[str, ...]


def forecast(session: Session, experiments: Sequence[Experiment], store: RunStore, points: int) -> Forecast:
    """Count the missing runs, and estimate their time by that of a forward pass of the dense model on real rows.

    How many settings a search will find is not known before it has run; as many as are asked for are counted.
    """
    at_a_time = getattr(session.place, "jobs", None) or 1
    pace = {key: row_seconds(one, at_a_time) for key, one in _one_per_task(experiments).items()}
    jobs = jobs_of(experiments, store, points)
    train = score = there = 0
    seconds, lines = 0.0, []
    for job in jobs:
        record, key = job.settled(store), _place(job.experiment)
        there += record is not None
        if record is None:
            train += 1
            seconds += job.units * pace[key]
            lines.append(f"{job.label}: about {duration(job.units * pace[key])} of one process")
        if job.listed and _turns(job.experiment):
            others = turned(job.experiment, record, points) if record else None
            missing = SCORED_PER_TRAINED * points - 1
            if others is not None:
                missing = sum(store.settled(other.config()) is None for other in others)
            score += missing
            seconds += missing * _scored_rows(job.experiment) * pace[key]
            if missing:
                lines.append(f"{job.label}: scored again at up to {missing} settings")
    return Forecast(train, score, there, seconds / at_a_time, tuple(lines))


def _turns(experiment: Experiment) -> bool:
    swept = methods.lookup(experiment.method).sweep
    return swept is not None and not swept.retrains


def _scored_rows(experiment: Experiment) -> int:
    splits = data_identity(experiment)["splits"]
    return sum(splits[name]["rows"] for name in experiment.task.eval_splits)


def _place(experiment: Experiment) -> tuple[str, str]:
    return experiment.model.identity, experiment.task.name


def _one_per_task(experiments: Sequence[Experiment]) -> dict[tuple[str, str], Experiment]:
    return {_place(experiment): experiment for experiment in reversed(experiments)}


def row_seconds(experiment: Experiment, jobs: int) -> float:
    """Seconds of a forward pass of the dense model per row, with the threads that one of `jobs` processes has."""
    import torch

    from benchmarks.data import collate, count_texts
    from benchmarks.evaluate import BATCH_SIZE
    from benchmarks.experiment_data import evaluation_features, padding_id
    from benchmarks.models import load_model

    features = evaluation_features(experiment, experiment.task.eval_splits[0])[:BATCH_SIZE]
    compute, threads = experiment.setting.compute, torch.get_num_threads()
    reducer = methods.create("dense", load_model(experiment.model, experiment.task)).eval()
    reducer.to(compute.device)
    batch = compute.place(collate(features, padding_id(experiment.model)))
    torch.set_num_threads(max(1, available_cores() // jobs))
    try:
        with torch.inference_mode(), compute.autocast():
            float(reducer(**batch).loss)  # a device is waited for: it must not warm up while the clock runs
            began = time.perf_counter()
            float(reducer(**batch).loss)
            return (time.perf_counter() - began) / count_texts(features)
    finally:
        torch.set_num_threads(threads)


def show_plan(experiments: Sequence[Experiment], console: Console) -> None:
    """Every training with its cost, touching neither network nor models."""
    from benchmarks.costs import estimate, estimate_text

    for experiment in experiments:
        console.print(f"{experiment.label}: {estimate_text(estimate(experiment))}", highlight=False)
    console.print(f"in all: {estimate_text(sum(map(estimate, experiments)))}", highlight=False)
