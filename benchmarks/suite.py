"""What the commands behind a table share: every method on every task, planned, run, and set in tables.

A command is a `Suite` (which tasks, on which encoders, beside which reported table) and one line: see
`benchmarks/glue.py`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rich.console import Console

from benchmarks.cli import Session, open_session, parser
from benchmarks.console import open_console
from benchmarks.errors import UserError
from benchmarks.progress import RunProgress, duration
from benchmarks.runs import Record, RunStore

if TYPE_CHECKING:
    from benchmarks.executor import Job
    from benchmarks.experiments import Experiment
    from benchmarks.tables import Entry
    from benchmarks.tasks import Task

WORTH = {
    "embedded": "a small model and small data: shows the machinery at work, reproduces no published number",
    "local": "your model and data",
    "paper": "the published checkpoints and data sets",
}


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One command and its table.

    Attributes:
        name: of the module in `benchmarks`, and of the files with the tables.
        description, example: what `--help` says.
        table: number of the Transkimmer paper's table.
        tasks: by profile, the names of the default tasks.
        encoders: of the paper profile, by title: the methods that run on each; None for all.
        embedded_rows: of the embedded profile, training and evaluation rows per task: what a laptop does in minutes.
        rows_of: the same for tasks that differ, by name.
    """

    name: str
    description: str
    example: str
    table: str
    tasks: Mapping[str, tuple[str, ...]]
    encoders: Mapping[str, tuple[str, ...] | None]
    embedded_rows: tuple[int, int]
    rows_of: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def program(self) -> str:
        """How the command is called."""
        return f"python -m benchmarks.{self.name}"

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run the command; returns the exit status."""
        session = open_session(parser(self).parse_args(argv), self)
        console = open_console()
        names = ", ".join(model.title for model in session.models)
        console.print(f"profile {session.profile}: {names}; {WORTH[session.profile]}", highlight=False)
        for line in left_out(session):
            console.print(line, highlight=False)
        if session.dry_run:
            show_plan(session, console)
            return 0
        session = drop_missing_tasks(session, console)
        store = session.store()
        outcome = execute(session, store)
        return finish(session, store, outcome, console, shlex.join([*self.program.split(), *(argv or sys.argv[1:])]))


@dataclass
class Outcome:
    """What came of the runs: entries of the table, and the failures by name."""

    entries: list[Entry] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


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


def execute(session: Session, store: RunStore) -> Outcome:
    """Run what is missing; a failure is kept in mind and the other runs go on."""
    from benchmarks.executor import Job
    from benchmarks.executor import execute as execute_jobs
    from benchmarks.tables import Entry

    outcome = Outcome()
    experiments = planned(session)
    first = planned_jobs(session, experiments, store)
    twins = {job.key: _twin_units(session, job.experiment) for job in first if _has_twin(session, job.experiment)}

    def follow(job: Job, record: Record) -> list[Job]:
        """After a method, random dropping at the same cost."""
        if job.key not in twins or job.of or record["status"] != "ok":
            return []
        twin = random_twin(job.experiment, record)
        return [Job(experiment=twin, of=job.experiment.method, needs=_keys(twin), units=twins[job.key])]

    with RunProgress(sum(job.units for job in first) + sum(twins.values()), quiet=session.quiet) as progress:
        progress.start_run(f"{len(first) + len(twins)} runs, {session.place}")
        for job, record in execute_jobs(first, follow, store, place=session.place, report=progress.advance):
            if record["started_at"] < store.opened_at:
                progress.skip(job.units)
            if record["status"] != "ok":
                outcome.failures.append(f"{job.label}: {record['error']}")
                continue
            experiment = job.experiment
            if job.listed:
                outcome.entries.append(
                    Entry(
                        model=experiment.model, task=experiment.task, method=experiment.method, record=record, of=job.of
                    )
                )
            progress.say(_line(job.label, record))
    order = {(e.model.title, e.task.name, e.seed, e.method): place for place, e in enumerate(experiments)}
    outcome.entries.sort(key=lambda entry: (order[_key(entry)], entry.of))
    return outcome


def planned_jobs(session: Session, experiments: Sequence[Experiment], store: RunStore) -> list[Job]:
    """A job for each experiment, and for each dense model that one of those still to run starts from."""
    from benchmarks.executor import Job
    from benchmarks.experiments import starting_points

    starts: dict[str, Experiment] = {}
    for experiment in experiments:
        for one in _still_to_run(session, experiment, store):
            starts |= {start.config().hash: start for start in starting_points(one)}
    jobs = [
        Job(experiment=one, needs=_keys(one), units=_units(session, one), weights=one.config().hash in starts)
        for one in experiments
    ]
    listed = {job.key for job in jobs}
    return jobs + [
        Job(experiment=start, units=_units(session, start), listed=False, weights=True)
        for key, start in starts.items()
        if key not in listed
    ]


def _still_to_run(session: Session, experiment: Experiment, store: RunStore) -> list[Experiment]:
    """Of an experiment and its random twin, those without a record; until the one has run, the other is a guess."""
    record = store.settled(experiment.config())
    if not _has_twin(session, experiment):
        return [] if record else [experiment]
    if record is None:
        return [experiment, _some_twin(experiment)]
    twin = random_twin(experiment, record) if record["status"] == "ok" else None
    return [twin] if twin and store.settled(twin.config()) is None else []


def _keys(experiment: Experiment) -> frozenset[str]:
    """Of the dense models that an experiment starts from."""
    from benchmarks.experiments import starting_points

    return frozenset(start.config().hash for start in starting_points(experiment))


def _has_twin(session: Session, experiment: Experiment) -> bool:
    return experiment.method not in ("dense", "random") and _has_twins(session, experiment.task)


def _some_twin(experiment: Experiment) -> Experiment:
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


def _units(session: Session, experiment: Experiment) -> float:
    from benchmarks.experiment_data import data_identity
    from benchmarks.experiments import work

    splits = data_identity(experiment)["splits"]
    train = splits[experiment.task.train_split]["rows"]
    return work(experiment, train, sum(splits[name]["rows"] for name in experiment.task.eval_splits))


def _twin_units(session: Session, experiment: Experiment) -> float:
    return _units(session, _some_twin(experiment))


def drop_missing_tasks(session: Session, console: Console) -> Session:
    """Embedded profile: prepare the data; leave out, with one line each, tasks whose data cannot be had."""
    from benchmarks.embedded import ensure_embedded, skimbench_home

    if session.profile != "embedded":
        return session
    have = ensure_embedded(skimbench_home(), [task.name for task in session.tasks])
    kept = tuple(task for task in session.tasks if have.get(task.name) is not None)
    for task in session.tasks:
        if task not in kept:
            console.print(f"{task.title} is left out: its data could not be had (see above)")
    if not kept:
        raise UserError("none of the tasks has data; run ./reproduce.sh setup with a network once")
    return replace(session, tasks=kept)


def show_plan(session: Session, console: Console) -> None:
    """`--dry-run`: every run with its cost, touching neither network nor models."""
    from benchmarks.costs import estimate, estimate_text

    totals = 0.0
    for experiment in planned(session):
        cost = estimate(experiment)
        totals += cost
        console.print(f"{experiment.label}: {estimate_text(cost)}", highlight=False)
        if _has_twin(session, experiment):
            console.print(
                f"{experiment.label}: random dropping at its measured schedule: {estimate_text(cost)}", highlight=False
            )
            totals += cost
    console.print(f"in all: {estimate_text(totals)}", highlight=False)


def finish(session: Session, store: RunStore, outcome: Outcome, console: Console, command: str) -> int:
    """Print and write the tables; name what failed."""
    from benchmarks import tables

    suite = session.suite
    frame = tables.long_table(outcome.entries, session.paddings, table=suite.table)
    if not frame.empty:
        heading = f"Table {suite.table}, {session.profile} profile"
        tables.print_table(tables.cell_table(frame), f"{heading}: score in percent, FLOPs speed-up", console)
        comparison = tables.comparison_table(frame)
        tables.print_table(comparison, "Measured and reported (mind the model and the data)", console)
        tables.print_table(tables.answer_table(outcome.entries), "Answers, percent", console)
        tables.print_table(
            tables.retention_table(outcome.entries), "Deciding tokens still computed / all tokens, percent", console
        )
        for line in tables.against_random(frame):
            console.print(line, highlight=False)
        paths = tables.write_tables(
            store.root / "tables",
            f"{suite.name}-{session.profile}",
            frame,
            outcome.entries,
            heading=heading,
            command=command,
            notes=left_out(session),
        )
        console.print(f"tables: {', '.join(str(path) for path in paths)}", highlight=False, soft_wrap=True)
        console.print(f"records: {store.root / 'runs'}", highlight=False, soft_wrap=True)
        if store.is_scratch:
            console.print("the work tree has changes, so these results are scratch: commit, then run again")
    for failure in outcome.failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if outcome.failures else 0
