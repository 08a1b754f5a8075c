"""What the commands behind a table share: every method on every task, planned, run, and set in tables.

A command is a `Suite` (which tasks, on which encoders, beside which reported table) and one line: see
`benchmarks/glue.py`.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks.cli import Session, check_from_records, open_session, parser
from benchmarks.console import add_json_flag, answer, open_console, rows_of
from benchmarks.errors import UserError
from benchmarks.runs import RunStore
from benchmarks.sweep import COMPUTES, Outcome, execute, left_out, recorded

if TYPE_CHECKING:
    from benchmarks.costs import Expected

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
        flags = parser(self)
        flags.add_argument(
            "--from-records",
            action="store_true",
            help="train nothing: the tables of the records in --results, of each task the seeds that are complete, and "
            "without --device or --dtype those of the device and type that have most",
        )
        flags.add_argument(
            "--table-suffix",
            metavar="NAME",
            help=f"call the files of the tables {self.name}-PROFILE-NAME: for a second set of runs in one --results",
        )
        add_json_flag(flags)
        arguments = flags.parse_args(argv)
        check_from_records(arguments)
        suffix = arguments.table_suffix
        if suffix is not None and not re.fullmatch(r"[A-Za-z0-9_]+", suffix):
            raise UserError(f"--table-suffix takes letters, digits and '_', got '{suffix}'")
        session = open_session(arguments, self)
        session = replace(session, quiet=session.quiet or arguments.json)
        console = open_console(quiet=arguments.json)
        names = ", ".join(model.title for model in session.models)
        console.print(f"profile {session.profile}: {names}; {WORTH[session.profile]}", highlight=False)
        for line in (*left_out(session), *replaced_heads(session)):
            console.print(line, highlight=False)
        if session.dry_run:
            runs = show_plan(session, console)
            answer(arguments, runs=[{"run": run.label, "flops": run.flops or None} for run in runs])
            return 0
        session = drop_missing_tasks(session, console)
        store = session.store()
        given = arguments.device, arguments.dtype
        computes = [one for one in COMPUTES if all(own in (None, it) for own, it in zip(given, one, strict=True))]
        outcome = recorded(session, store, computes) if arguments.from_records else execute(session, store)
        if arguments.from_records and not outcome.entries:
            where = store.root / "runs"
            raise UserError(f"no task has a record of every run in {where}; without --from-records they are made")
        command = shlex.join([*self.program.split(), *(argv or sys.argv[1:])])
        rows, paths = write_outcome(session, store, outcome, console, command, suffix)
        records = store.root / "runs"
        answer(arguments, rows=rows, failures=outcome.failures, tables=paths, records=records, command=command)
        for failure in outcome.failures:
            print(f"failed: {failure}", file=sys.stderr)
        return 1 if outcome.failures else 0


def replaced_heads(session: Session) -> list[str]:
    """One sentence for each model and task whose classifier is not the task's."""
    from benchmarks.models import replaced_head

    told = (replaced_head(model, task) for model in session.models for task in session.tasks)
    return [line for line in told if line]


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


def show_plan(session: Session, console: Console) -> list[Expected]:
    """`--dry-run`: every run with its cost, which are returned, touching neither network nor models."""
    from benchmarks.costs import estimate_text, expected_runs

    runs = expected_runs(session)
    for run in runs:
        console.print(f"{run.label}: {estimate_text(run.flops)}", highlight=False)
    console.print(f"in all: {estimate_text(sum(run.flops for run in runs))}", highlight=False)
    return runs


def write_outcome(
    session: Session, store: RunStore, outcome: Outcome, console: Console, command: str, suffix: str | None = None
) -> tuple[list[dict[str, Any]], list[Path]]:
    """Print and write the tables; returns the rows of the long one and the files."""
    from benchmarks import tables

    suite, paths = session.suite, []
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
            "-".join(filter(None, (suite.name, session.profile, suffix))),
            frame,
            outcome.entries,
            heading=heading,
            command=command,
            notes=[*left_out(session), *outcome.notes],
        )
        console.print(f"tables: {', '.join(str(path) for path in paths)}", highlight=False, soft_wrap=True)
        console.print(f"records: {store.root / 'runs'}", highlight=False, soft_wrap=True)
        if store.is_scratch:
            console.print("the work tree has changes, so these results are scratch: commit, then run again")
    return rows_of(frame), paths
