"""The runs of a command: every method on every task, what they start from, and the random twins that follow them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING

from benchmarks.progress import RunProgress, duration
from benchmarks.runs import Record, RunStore

if TYPE_CHECKING:
    from benchmarks.cli import Session
    from benchmarks.executor import Job
    from benchmarks.experiments import Experiment
    from benchmarks.tables import Entry
    from benchmarks.tasks import Task

DEVICES = {"cuda": "a GPU", "cpu": "a CPU"}
DTYPES = ("float32", "bfloat16")
COMPUTES = tuple(itertools.product(DEVICES, DTYPES))
TwinsOf = Callable[["Experiment", "Record | None"], Sequence["Experiment"]]


@dataclass
class Outcome:
    """What came of the runs: entries of the table, the failures by name, and sentences about what is not in it."""

    entries: list[Entry] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def seeds(self) -> set[int]:
        """All that an entry is of."""
        return {entry.record["config"]["seed"] for entry in self.entries}


def planned(session: Session) -> list[Experiment]:
    """All runs but random twins, whose schedules are measured first; dense before what starts from it."""
    from benchmarks.experiments import plan, supports

    runs = []
    for model in session.models:
        beside = session.suite.encoders.get(model.title) if session.profile == "paper" else None
        names = tuple(name for name in session.methods if beside is None or name in beside)
        for task in session.tasks:
            for seed in session.seeds:
                runs += [
                    plan(session.setting_for(task), model, task, name, seed)
                    for name in names
                    if supports(name, task) is None and not (name == "random" and _has_twins(session, task))
                ]
    return runs


def left_out(session: Session) -> list[str]:
    """One sentence for each method and task that do not go together."""
    import methods
    from benchmarks.experiments import supports

    pairs = [(name, task) for task in session.tasks for name in session.methods]
    return [
        f"{methods.lookup(name).traits.title} is left out of {task.title}: {reason}"
        for name, task in pairs
        if (reason := supports(name, task)) is not None
    ]


def _has_twins(session: Session, task: Task) -> bool:
    """Whether random dropping follows other methods' schedules; alone on a task, it has a schedule of its own."""
    from benchmarks.experiments import supports

    return "random" in session.methods and any(
        supports(name, task) is None for name in session.methods if name not in ("dense", "random")
    )


def random_twin(experiment: Experiment, record: Record) -> Experiment:
    """Random dropping at the cost that `experiment` was measured at, layer by layer."""
    from benchmarks.experiments import plan
    from benchmarks.flops import equal_cost_schedule

    first = record["metrics"]["splits"][experiment.task.eval_splits[0]]
    options = {"keep_schedule": equal_cost_schedule(first["cost"])}
    return plan(experiment.setting, experiment.model, experiment.task, "random", experiment.seed, options=options)


def usual_twins(experiment: Experiment, record: Record | None) -> tuple[Experiment, ...]:
    """The random twin of a run; until it has a record, one whose cost is a guess."""
    return (some_twin(experiment) if record is None else random_twin(experiment, record),)


def execute(session: Session, store: RunStore, twins_of: TwinsOf = usual_twins) -> Outcome:
    """Run what is missing; a failure is kept in mind and the other runs go on.

    Args:
        twins_of: what follows the run of a method: random dropping at the same cost.
    """
    from benchmarks.executor import Job
    from benchmarks.tables import Entry

    outcome = Outcome()
    experiments = planned(session)
    first = planned_jobs(session, experiments, store, twins_of)
    twins = {
        job.key: [_units(twin) for twin in twins_of(job.experiment, None)]
        for job in first
        if has_twin(session, job.experiment)
    }

    def follow(job: Job, record: Record) -> list[Job]:
        """After a method, random dropping at the same cost."""
        if job.key not in twins or job.of or record["status"] != "ok":
            return []
        found = zip(twins_of(job.experiment, record), twins[job.key], strict=True)
        return [Job(experiment=one, of=job.experiment.method, needs=_keys(one), units=units) for one, units in found]

    later, units = sum(map(len, twins.values())), sum(map(sum, twins.values()))
    for job, record, progress in completed(session, store, first, follow, later=later, later_units=units):
        if record["status"] != "ok":
            outcome.failures.append(f"{job.label}: {record['error']}")
            continue
        experiment = job.experiment
        if job.listed:
            outcome.entries.append(
                Entry(model=experiment.model, task=experiment.task, method=experiment.method, record=record, of=job.of)
            )
        progress.say(_line(job.label, record))
    order = {(e.model.title, e.task.name, e.seed, e.method): place for place, e in enumerate(experiments)}
    outcome.entries.sort(key=lambda entry: (order[_key(entry)], entry.of))
    return outcome


def recorded(session: Session, store: RunStore, computes: Sequence[tuple[str, str]] = COMPUTES) -> Outcome:
    """The same of records alone, nothing computed: of each model and task the seeds that have a record of every method.

    Args:
        computes: devices and types that runs may have been made with. Each task's is the one with most such seeds, of
            several the first; where these differ, a note says which tasks are of which.
    """
    outcome = Outcome()
    tasks_of: dict[tuple[str, str], list[str]] = {compute: [] for compute in computes}
    every = {compute: _recorded_with(session, store, *compute) for compute in computes}
    for place in next(iter(every.values())):
        compute = max(computes, key=lambda compute: len(every[compute][place].seeds))
        one = every[compute][place]
        outcome.entries += one.entries
        outcome.notes += one.notes
        tasks_of[compute] += [place[1]] if one.entries else []
    told = [
        f"{', '.join(dict.fromkeys(tasks))} on {DEVICES[device]} in {dtype}"
        for (device, dtype), tasks in tasks_of.items()
        if tasks
    ]
    return replace(outcome, notes=[f"Computed: {'; '.join(told)}", *outcome.notes] if len(told) > 1 else outcome.notes)


def _recorded_with(session: Session, store: RunStore, device: str, dtype: str) -> dict[tuple[str, str], Outcome]:
    """By model and task, what there is of runs on one device in one type; random dropping where every seed has it."""
    import methods

    compute = replace(session.setting.compute, device=device, dtype=dtype)
    session = replace(session, setting=replace(session.setting, compute=compute))
    outcomes: dict[tuple[str, str], Outcome] = {}
    runs_of = groupby(planned(session), key=lambda run: (run.model.title, run.task.title, run.seed))
    for (model, task, seed), runs in runs_of:
        outcome = outcomes.setdefault((model, task), Outcome())
        found = [_recorded(session, run, store) for run in runs]
        if all(found):
            outcome.entries += [entry for entries in found for entry in entries]
        else:
            missing = sum(not entries for entries in found)
            outcome.notes.append(f"{task} with {model}, seed {seed}: {missing} of {len(found)} methods lack a record")
    for (model, task), outcome in outcomes.items():
        alone = _without_twins(session, outcome.entries)
        outcome.entries = [entry for entry in outcome.entries if entry.of not in alone]
        titles = sorted(methods.lookup(name).traits.title for name in alone)
        outcome.notes += [f"{task} with {model}: no record of random dropping beside {title}" for title in titles]
    return outcomes


def _without_twins(session: Session, entries: Sequence[Entry]) -> set[str]:
    """Methods whose random twin lacks the record of a seed."""
    if not entries or not _has_twins(session, entries[0].task):
        return set()
    runs = {(entry.of or entry.method, bool(entry.of), entry.record["config"]["seed"]) for entry in entries}
    due = {(name, True, seed) for name, is_twin, seed in runs if not is_twin and name not in ("dense", "random")}
    return {name for name, _, _ in due - runs}


def _recorded(session: Session, experiment: Experiment, store: RunStore) -> list[Entry]:
    """Entries of a run and of its random twin, as far as they have records; none without the run's own."""
    from benchmarks.tables import Entry

    entries: list[Entry] = []
    wanted = [(experiment, "")]
    for one, of in wanted:
        record = store.settled(one.config())
        if record is None or record["status"] != "ok":
            return entries
        entries.append(Entry(model=one.model, task=one.task, method=one.method, record=record, of=of))
        if has_twin(session, one) and not of:
            wanted.append((random_twin(one, record), one.method))
    return entries


def completed(
    session: Session,
    store: RunStore,
    first: Sequence[Job],
    follow: Callable[[Job, Record], Iterable[Job]] = lambda job, record: (),
    *,
    later: int = 0,
    later_units: float = 0.0,
) -> Iterator[tuple[Job, Record, RunProgress]]:
    """Run jobs where the session says, all in one display; yields each as it finishes, and the display.

    Args:
        follow: see `benchmarks.executor.execute`; it will ask for about `later` jobs of `later_units` in all.
    """
    from benchmarks.executor import execute as execute_jobs

    with RunProgress(sum(job.units for job in first) + later_units, quiet=session.quiet) as progress:
        progress.start_run(f"{len(first) + later} runs, {session.place}")
        for job, record in execute_jobs(first, follow, store, place=session.place, report=progress.advance):
            if record["started_at"] < store.opened_at:
                progress.skip(job.units)
            yield job, record, progress


def planned_jobs(
    session: Session, experiments: Sequence[Experiment], store: RunStore, twins_of: TwinsOf = usual_twins
) -> list[Job]:
    """A job for each experiment, and for each dense model that one of those still to run starts from."""
    from benchmarks.executor import Job
    from benchmarks.experiments import starting_points

    starts: dict[str, Experiment] = {}
    for experiment in experiments:
        for one in _still_to_run(session, experiment, store, twins_of):
            starts |= {start.config().hash: start for start in starting_points(one)}
    jobs = [
        Job(experiment=one, needs=_keys(one), units=_units(one), weights=one.config().hash in starts)
        for one in experiments
    ]
    listed = {job.key for job in jobs}
    return jobs + [
        Job(experiment=start, units=_units(start), listed=False, weights=True)
        for key, start in starts.items()
        if key not in listed
    ]


def _still_to_run(session: Session, experiment: Experiment, store: RunStore, twins_of: TwinsOf) -> list[Experiment]:
    """Of an experiment and its random twins, those without a record; until the one has run, the others are a guess."""
    record = store.settled(experiment.config())
    missing = [] if record else [experiment]
    if not has_twin(session, experiment) or (record and record["status"] != "ok"):
        return missing
    return missing + [
        twin for twin in twins_of(experiment, record) if record is None or store.settled(twin.config()) is None
    ]


def _keys(experiment: Experiment) -> frozenset[str]:
    """Of the dense models that an experiment starts from."""
    from benchmarks.experiments import starting_points

    return frozenset(start.config().hash for start in starting_points(experiment))


def has_twin(session: Session, experiment: Experiment) -> bool:
    """Whether random dropping follows the schedule of this run."""
    return experiment.method not in ("dense", "random") and _has_twins(session, experiment.task)


def some_twin(experiment: Experiment) -> Experiment:
    """Random dropping beside an experiment whose cost is still unknown."""
    from benchmarks.experiments import plan

    return plan(experiment.setting, experiment.model, experiment.task, "random", experiment.seed)


def _key(entry: Entry) -> tuple[str, str, int, str]:
    """Place of an entry in the table: a random run stands behind the method that it follows."""
    return entry.model.title, entry.task.name, entry.record["config"]["seed"], entry.of or entry.method


def _line(name: str, record: Record) -> str:
    metrics = record["metrics"]
    cost = next(iter(metrics["splits"].values()))["cost"]
    unpadded = cost["padding"]["none"]
    speeds = [f"FLOPs / {unpadded['speedup']:.2f} without padding"]
    speeds += [f"/ {other['speedup']:.2f} ({account})" for account, other in unpadded.get("extra", {}).items()]
    score = f"{metrics['metric']} {100 * metrics['score']:.1f}"
    return f"{name}: {score}, {', '.join(speeds)}, {duration(record['wall_s'])}"


def _units(experiment: Experiment) -> float:
    from benchmarks.experiment_data import data_identity
    from benchmarks.experiments import work

    splits = data_identity(experiment)["splits"]
    train = splits[experiment.task.train_split]["rows"]
    return work(experiment, train, sum(splits[name]["rows"] for name in experiment.task.eval_splits))
