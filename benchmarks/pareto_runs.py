"""Sweeps: every method at several settings of its own trade (`methods.Sweep`), trained or only scored again.

The recipe's own setting is always among them and is the run of the other commands, so that what these have trained is
reused. Settings that need no training are tried on that run's model: one training, many scores, each its own record.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import methods
from benchmarks.executor import Job, execute
from benchmarks.experiment_data import data_identity
from benchmarks.experiments import Experiment, plan, starting_points, supports, work
from benchmarks.models import PAPER_MODELS
from benchmarks.progress import RunProgress, duration

if TYPE_CHECKING:
    from benchmarks.cli import Session
    from benchmarks.models import ModelRef
    from benchmarks.runs import Record, RunStore

SCORED_PER_TRAINED = 2  # settings of a sweep that needs no training, for each of one that does


@dataclass
class Swept:
    """What came of a sweep: finished runs, failures by name, and how many runs a budget left out."""

    runs: list[tuple[Experiment, Record]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    left_out: int = 0


@dataclass
class _Budget:
    """When a sweep has to end, as `time.monotonic` counts, and the pace so far: units of work, and seconds for them."""

    end_s: float
    units: float = 0.0
    computed_s: float = 0.0

    def allows(self, units: float) -> bool:
        """Whether so much more would end in time; before there is a pace, anything would."""
        return not self.units or units * self.computed_s / self.units <= self.end_s - time.monotonic()


def setting_text(option: str, value: Any) -> str:
    """A setting, for people: "threshold 0.3", "length_configuration 64-32-16"."""
    text = "-".join(f"{item:g}" for item in value) if isinstance(value, (list, tuple)) else f"{value:g}"
    return f"{option} {text}"


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of `items`, evenly spread, the first and the last among them."""
    if count >= len(items):
        return list(items)
    if count <= 1:
        return list(items[len(items) // 2 :][:count])
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def planned(session: Session, points: int) -> list[Experiment]:
    """All trainings, the methods' own settings first, then one more setting of each method after another."""
    rounds: list[list[Experiment]] = [[] for _ in range(points)]
    for model in session.models:
        for task in session.tasks:
            for seed in session.seeds:
                for name in session.methods:
                    if supports(name, task) is None:
                        own = plan(session.setting_for(task), model, task, name, seed)
                        rounds[0].append(own)
                        for place, other in enumerate(_retrained(own, points), 1):
                            rounds[place].append(other)
    return [experiment for one in rounds for experiment in one]


def _retrained(own: Experiment, points: int) -> Iterator[Experiment]:
    """The run at other settings, where each needs a training; `points` settings in all."""
    cls = methods.lookup(own.method)
    swept = cls.sweep
    if swept is None or not swept.retrains or points < 2:
        return
    options = vars(cls.options_class(**own.options))
    for value in reversed(spread(swept.values, points - 1)):  # where a budget ends it, the strong end is there
        changed = cls.sweep_options(value, options, layers_of(own.model))
        if any(options[name] != other for name, other in changed.items()):
            shown = changed[swept.option] if swept.relative else value
            yield replace(own, options=dict(own.options) | changed, note=setting_text(swept.option, shown))


def turned(own: Experiment, record: Record, points: int) -> list[Experiment]:
    """The trained run at other settings that need no training."""
    cls = methods.lookup(own.method)
    if cls.sweep is None or cls.sweep.retrains or own.turned is not None or record["status"] != "ok":
        return []
    metrics, option = record["metrics"], cls.sweep.option
    found = metrics["options_after_training"].get(option)
    values = [value for value in cls.sweep_values(own.task, metrics) if _plain(value) != _plain(found)]
    return [
        replace(own, turned=value, note=setting_text(option, value))
        for value in spread(values, SCORED_PER_TRAINED * points - 1)
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def layers_of(model: ModelRef) -> int:
    """Layers of an encoder, by its configuration."""
    import transformers

    if model.source in PAPER_MODELS.values():  # known without asking the hub
        return 6 if model.family == "distilbert" else 12
    return int(transformers.AutoConfig.from_pretrained(model.source).num_hidden_layers)


def jobs_of(experiments: Sequence[Experiment], store: RunStore, points: int) -> list[Job]:
    """A job for each training, and for each dense model that one of those still to run starts from."""
    starts: dict[str, Experiment] = {}
    rescored = {one.config().hash for one in experiments if _to_score_again(one, store, points)}
    for experiment in experiments:
        config = experiment.config()
        if store.settled(config) is None or (config.hash in rescored and not _has_weights(experiment)):
            starts |= {start.config().hash: start for start in starting_points(experiment)}
    jobs = {}
    for experiment in experiments:
        key = experiment.config().hash
        jobs[key] = _job(experiment, weights=key in starts or key in rescored)
    for key, start in starts.items():
        if key not in jobs:
            jobs[key] = _job(start, listed=False, weights=True)
    return list(jobs.values())


def _has_weights(experiment: Experiment) -> bool:
    from benchmarks.running import checkpoint_folder

    return checkpoint_folder(experiment).is_dir()


def _to_score_again(experiment: Experiment, store: RunStore, points: int) -> bool:
    """Whether a finished run's model has to be scored at settings without a record."""
    record = store.settled(experiment.config())
    others = turned(experiment, record, points) if record else []
    return any(store.settled(other.config()) is None for other in others)


def _job(experiment: Experiment, *, listed: bool = True, weights: bool = False) -> Job:
    needs = frozenset(start.config().hash for start in starting_points(experiment))
    return Job(experiment=experiment, needs=needs, units=units_of(experiment), listed=listed, weights=weights)


def units_of(experiment: Experiment) -> float:
    """Forward passes of rows that a run takes."""
    task, splits = experiment.task, data_identity(experiment)["splits"]
    evaluated = sum(splits[name]["rows"] for name in task.eval_splits)
    return work(experiment, splits[task.train_split]["rows"], evaluated)


def sweep(
    session: Session,
    experiments: Sequence[Experiment],
    store: RunStore,
    points: int,
    budget_s: float,
    speedups: Sequence[float] = (),
) -> Swept:
    """Run what is missing, and with `speedups` what a search for these asks for, `points` trainings each at most.

    With a budget, settings are run in rounds, the methods' own first, and no round starts, nor any training or scoring
    that a search asks for, that would end too late by the pace so far; runs that this leaves out are counted.
    """
    found, budget = Swept(), _Budget(time.monotonic() + budget_s)
    rounds = _rounds(experiments) if budget_s < math.inf else [list(experiments)]
    total = sum(job.units for some in rounds for job in jobs_of(some, store, points))
    with RunProgress(total, quiet=session.quiet) as progress:
        for some in rounds:
            jobs = jobs_of(some, store, points)
            missing = [job for job in jobs if job.settled(store) is None]
            if not budget.allows(sum(job.units for job in missing)):
                found.left_out += len(missing)
                jobs = [job for job in jobs if job not in missing]
            _run(session, jobs, store, points, progress, found, speedups, budget)
    return found


def _rounds(experiments: Sequence[Experiment]) -> list[list[Experiment]]:
    """Rounds of `planned`: each has a method once per task, encoder and seed."""
    rounds: list[list[Experiment]] = []
    seen: dict[tuple[str, str, str, int], int] = {}
    for experiment in experiments:
        key = _method_key(experiment)
        place = seen[key] = seen.get(key, -1) + 1
        if place == len(rounds):
            rounds.append([])
        rounds[place].append(experiment)
    return rounds


def _method_key(experiment: Experiment) -> tuple[str, str, str, int]:
    """What the runs of one method that differ only in its settings share."""
    return experiment.model.identity, experiment.task.name, experiment.method, experiment.seed


def _run(
    session: Session,
    jobs: Sequence[Job],
    store: RunStore,
    points: int,
    progress: RunProgress,
    found: Swept,
    speedups: Sequence[float],
    budget: _Budget,
) -> None:
    """Run jobs, each trained model at its other settings, and what searches go on with as far as the budget allows."""
    from benchmarks.pareto_search import SpeedSearch

    searches: dict[tuple[str, str, str, int], SpeedSearch] = {}
    earlier_s, began = budget.computed_s, time.monotonic()

    def follow(job: Job, record: Record) -> list[Job]:
        if record["started_at"] >= store.opened_at:
            budget.units += job.units
            budget.computed_s = earlier_s + time.monotonic() - began
        if not job.listed:
            return []
        others = turned(job.experiment, record, points)
        if speedups and SpeedSearch.can(job.experiment):
            key = _method_key(job.experiment)
            if key not in searches:
                searches[key] = SpeedSearch(job.experiment, speedups, points, list(others))
            for trial in searches[key].after(job.experiment, record):
                if store.settled(trial.config()) is not None or budget.allows(units_of(trial)):
                    others.append(trial)
                else:
                    found.left_out += 1
        return [_job(other) for other in others]

    progress.start_run(f"{len(jobs)} runs, {session.place}")
    for job, record in execute(jobs, follow, store, place=session.place, report=progress.advance):
        if record["started_at"] < store.opened_at:
            progress.skip(job.units)
        if record["status"] != "ok":
            found.failures.append(f"{job.label}: {record['error']}")
        elif job.listed:
            found.runs.append((job.experiment, record))
            cost = next(iter(record["metrics"]["splits"].values()))["cost"]["padding"]["none"]
            score = f"{record['metrics']['metric']} {100 * record['metrics']['score']:.1f}"
            progress.say(f"{job.label}: {score}, FLOPs / {cost['speedup']:.2f}, {duration(record['wall_s'])}")
