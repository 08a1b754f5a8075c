"""Table 3: every method on GLUE, or on the embedded tasks: score and FLOPs speed-up under each padding setting."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console

from benchmarks.cli import Session, open_session, parser, run_command
from benchmarks.console import open_console
from benchmarks.errors import UserError
from benchmarks.progress import RunProgress, duration
from benchmarks.runs import Record, RunStore
from benchmarks.tasks import EMBEDDED, GLUE

if TYPE_CHECKING:
    from benchmarks.experiments import Experiment
    from benchmarks.tables import Entry

TASKS = {"embedded": EMBEDDED, "local": GLUE, "paper": GLUE}
WORTH = {
    "embedded": "a small model and small data: shows the machinery at work, reproduces no published number",
    "local": "your model and data",
    "paper": "the published checkpoints and data sets",
}
COMPRESSED = ("dense", "transkimmer", "random")  # what Table 3 has beside BERT: each encoder alone and with Transkimmer


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
        names = session.methods
        if session.profile == "paper" and model.title != "BERT-base":
            names = tuple(name for name in names if name in COMPRESSED)
        for task in session.tasks:
            for seed in session.seeds:
                runs += [
                    plan(session.setting, model, task, name, seed)
                    for name in names
                    if supports(name, task) is None and not (name == "random" and _has_twins(session))
                ]
    return runs


def _has_twins(session: Session) -> bool:
    """Whether random dropping follows other methods' schedules; asked for alone, it has a schedule of its own."""
    return "random" in session.methods and bool(set(session.methods) - {"dense", "random"})


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
    twins = _has_twins(session)
    dense = [experiment for experiment in experiments if experiment.method == "dense"]
    others = [experiment for experiment in experiments if experiment.method != "dense"]
    units = {experiment.label: _units(session, experiment) for experiment in experiments}

    def follow(job: Job, record: Record) -> list[Job]:
        """After a dense model, what starts from it; after a method, random dropping at the same cost."""
        done = job.experiment
        if done.method == "dense":
            return [Job(other) for other in others if _same_start(other, done)]
        ok = record["status"] == "ok"
        return [Job(random_twin(done, record), of=done.method)] if ok and twins and not job.of else []

    total = sum(units.values()) + (sum(_twin_units(session, experiment) for experiment in others) if twins else 0)
    with RunProgress(total, quiet=session.quiet) as progress:
        progress.start_run(f"{len(experiments) + (len(others) if twins else 0)} runs, {session.jobs} at a time")
        first = [Job(experiment) for experiment in dense]
        for job, record in execute_jobs(first, follow, store, jobs=session.jobs, report=progress.advance):
            if record["started_at"] < store.opened_at:
                progress.skip(_twin_units(session, job.experiment) if job.of else units[job.experiment.label])
            if record["status"] != "ok":
                outcome.failures.append(f"{job.label}: {record['error']}")
                continue
            experiment = job.experiment
            outcome.entries.append(
                Entry(model=experiment.model, task=experiment.task, method=experiment.method, record=record, of=job.of)
            )
            progress.say(_line(job.label, record))
    order = {(e.model.title, e.task.name, e.seed, e.method): place for place, e in enumerate(experiments)}
    outcome.entries.sort(key=lambda entry: (order[_key(entry)], entry.of))
    return outcome


def _same_start(experiment: Experiment, dense: Experiment) -> bool:
    return (experiment.model, experiment.task, experiment.seed) == (dense.model, dense.task, dense.seed)


def _key(entry: Entry) -> tuple[str, str, int, str]:
    """Place of an entry in the table: a random run stands behind the method that it follows."""
    return entry.model.title, entry.task.name, entry.record["config"]["seed"], entry.of or entry.method


def _line(name: str, record: Record) -> str:
    metrics = record["metrics"]
    cost = next(iter(metrics["splits"].values()))["cost"]
    speed = f"FLOPs / {cost['padding']['none']['speedup']:.2f} without padding"
    return f"{name}: {metrics['metric']} {100 * metrics['score']:.1f}, {speed}, {duration(record['wall_s'])}"


def _units(session: Session, experiment: Experiment) -> float:
    from benchmarks.experiments import data_identity, work

    splits = data_identity(experiment)["splits"]
    train = splits[experiment.task.train_split]["rows"]
    return work(experiment, train, sum(splits[name]["rows"] for name in experiment.task.eval_splits))


def _twin_units(session: Session, experiment: Experiment) -> float:
    from benchmarks.experiments import plan

    twin = plan(session.setting, experiment.model, experiment.task, "random", experiment.seed)
    return _units(session, twin)


def drop_missing_tasks(session: Session, console: Console) -> Session:
    """Embedded profile: prepare the data; leave out, with one line each, tasks whose data cannot be had."""
    from dataclasses import replace

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
        if _has_twins(session) and experiment.method != "dense":
            console.print(
                f"{experiment.label}: random dropping at its measured schedule: {estimate_text(cost)}", highlight=False
            )
            totals += cost
    console.print(f"in all: {estimate_text(totals)}", highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = parser(
        "python -m benchmarks.glue",
        __doc__ or "",
        "python -m benchmarks.glue --profile local --data-dir DIR --tasks sst2 mrpc --max-train-samples 8000",
    ).parse_args(argv)
    session = open_session(arguments, TASKS)
    console = open_console()
    names = ", ".join(model.title for model in session.models)
    console.print(f"profile {session.profile}: {names}; {WORTH[session.profile]}", highlight=False)
    if session.dry_run:
        show_plan(session, console)
        return 0
    session = drop_missing_tasks(session, console)
    store = session.store()
    outcome = execute(session, store)
    return finish(
        session, store, outcome, console, shlex.join(["python", "-m", "benchmarks.glue", *(argv or sys.argv[1:])])
    )


def finish(session: Session, store: RunStore, outcome: Outcome, console: Console, command: str) -> int:
    """Print and write the tables; name what failed."""
    from benchmarks import tables

    frame = tables.long_table(outcome.entries, session.paddings, table="3")
    if not frame.empty:
        heading = f"Table 3, {session.profile} profile"
        tables.print_table(tables.cell_table(frame), f"{heading}: score in percent, FLOPs speed-up", console)
        comparison = tables.comparison_table(frame)
        tables.print_table(comparison, "Measured and reported (mind the model and the data)", console)
        tables.print_table(
            tables.retention_table(outcome.entries), "Deciding tokens still computed / all tokens, percent", console
        )
        for line in tables.against_random(frame):
            console.print(line, highlight=False)
        paths = tables.write_tables(
            store.root / "tables", f"glue-{session.profile}", frame, outcome.entries, heading=heading, command=command
        )
        console.print(f"tables: {', '.join(str(path) for path in paths)}", highlight=False, soft_wrap=True)
        console.print(f"records: {store.root / 'runs'}", highlight=False, soft_wrap=True)
        if store.is_scratch:
            console.print("the work tree has changes, so these results are scratch: commit, then run again")
    for failure in outcome.failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
