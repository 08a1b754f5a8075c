"""Forwarding against discarding (Table 1): Transkimmer trained twice from one dense model, once each way.

A head over tokens reads the last state of every skimmed token where these are forwarded, as published, and nothing in
their place where they are discarded. A head over texts reads neither, so that its answers are the same by construction:
only tasks whose answers are spans are compared.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from benchmarks.cli import open_session, parser, run_command
from benchmarks.comparable import Comparison, own_settings
from benchmarks.compared import Difference, difference_of
from benchmarks.console import add_json_flag, answer, open_console, print_table, rows_of
from benchmarks.errors import UserError
from benchmarks.files import write_table
from benchmarks.long import SUITE as LONG
from benchmarks.runs import Record
from benchmarks.suite import drop_missing_tasks
from benchmarks.sweep import completed, planned, planned_jobs

if TYPE_CHECKING:
    import pandas as pd

    from benchmarks.experiments import Experiment
    from benchmarks.runs import RunStore

METHOD, OPTION, OTHER = "transkimmer", "skimmed", "discarded"
SUITE = replace(
    LONG,
    name="forwarding",
    description=__doc__ or "",
    example="--profile local --data-dir DIR --max-train-samples 2000 --max-length 256 --seeds 42 43 44",
    table="1",
    tasks={"embedded": ("synthetic_squad_v2",), "local": ("squad_v2",), "paper": ("squad_v2",)},
)


@dataclass(frozen=True)
class Ways:
    """One task both ways, with the same seeds.

    Attributes:
        forwarded, discarded: percent, of each seed; speedups: means, without padding, in this order. difference:
            forwarded minus discarded; None where outcomes of texts are unknown. records: by hash, forwarded first.
    """

    title: str
    metric: str
    seeds: tuple[int, ...]
    forwarded: tuple[float, ...]
    discarded: tuple[float, ...]
    speedups: tuple[float, float]
    difference: Difference | None
    records: tuple[str, ...]

    @property
    def row(self) -> dict[str, str]:
        """Of a table, by column."""
        scores = [" ".join(f"{score:.1f}" for score in some) for some in (self.forwarded, self.discarded)]
        return {
            "Task": self.title,
            "Metric": self.metric,
            "Seeds": " ".join(map(str, self.seeds)),
            **{
                name: f"{score} at {speedup:.2f}x"
                for name, score, speedup in zip(("Forwarded", "Discarded"), scores, self.speedups, strict=True)
            },
            "Difference": self.difference.text if self.difference else "",
            "Records": " ".join(self.records),
        }


def both_ways(comparisons: Iterable[Comparison]) -> list[Ways]:
    """Of each task the seeds that were trained both ways, where there are any."""
    return [one for comparison in comparisons if (one := _both_ways(comparison.title, comparison.records)) is not None]


def _both_ways(title: str, records: Sequence[Record]) -> Ways | None:
    own = {r["config"]["seed"]: r for r in own_settings(records) if r["config"]["method"] == METHOD}
    others = {
        seed: record
        for record in records
        if record["config"]["method"] == METHOD
        and (seed := record["config"]["seed"]) in own
        and _otherwise(own[seed]["config"]) == _said(record["config"])
    }
    pairs = [(own[seed], others[seed]) for seed in sorted(others)]
    if not pairs:
        return None
    forwarded, discarded = zip(*pairs, strict=True)
    return Ways(
        title=title,
        metric=forwarded[0]["metrics"]["metric"],
        seeds=tuple(sorted(others)),
        forwarded=_scores(forwarded),
        discarded=_scores(discarded),
        speedups=(_speedup(forwarded), _speedup(discarded)),
        difference=difference_of(forwarded, discarded),
        records=tuple(record["config_hash"] for record in (*forwarded, *discarded)),
    )


def _said(config: Mapping[str, Any]) -> tuple[Any, ...]:
    return config["options"], config["stages"], config["extra"]


def _otherwise(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """What the run is called that discards, else the same."""
    return {**config["options"], OPTION: OTHER}, config["stages"], config["extra"]


def _scores(records: Iterable[Record]) -> tuple[float, ...]:
    return tuple(100 * record["metrics"]["score"] for record in records)


def _speedup(records: Sequence[Record]) -> float:
    first = [next(iter(record["metrics"]["splits"].values())) for record in records]
    return sum(split["cost"]["padding"]["none"]["speedup"] for split in first) / len(first)


def ways_of(experiment: Experiment) -> tuple[Experiment, Experiment]:
    """Both runs of one of Transkimmer's, as it is and discarding."""
    return experiment, replace(experiment, options={**experiment.options, OPTION: OTHER}, note=OTHER)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    flags = parser(SUITE, unpadded=True)
    add_json_flag(flags)
    arguments = flags.parse_args(argv)
    if arguments.methods and set(arguments.methods) != {METHOD}:
        raise UserError(f"--methods: only {METHOD} is trained both ways; leave the flag out")
    session = replace(open_session(arguments, SUITE), methods=(METHOD,))
    session = replace(session, quiet=session.quiet or arguments.json)
    spans = tuple(task for task in session.tasks if task.kind == "span_qa")
    if not arguments.tasks and spans:  # of a folder of rows, those that fit
        session = replace(session, tasks=spans)
    elif odd := [task.title for task in session.tasks if task not in spans]:
        raise UserError(f"--tasks: {odd[0]} has no spans to find, so that both ways give the same answers")
    console = open_console(quiet=arguments.json)
    experiments = [way for experiment in planned(session) for way in ways_of(experiment)]
    if session.dry_run:
        for experiment in experiments:
            console.print(experiment.label, highlight=False)
        answer(arguments, runs=[experiment.label for experiment in experiments])
        return 0
    session = drop_missing_tasks(session, console)
    store = session.store()
    experiments = [experiment for experiment in experiments if experiment.task in session.tasks]
    records, failures = [], []
    for job, record, progress in completed(session, store, planned_jobs(session, experiments, store)):
        if record["status"] != "ok":
            failures.append(f"{job.label}: {record['error']}")
        elif job.listed:
            records.append(record)
            progress.say(f"{job.label}: {100 * record['metrics']['score']:.1f} at {_speedup([record]):.2f}x")
    frame = _frame(records, {task.name: task.title for task in session.tasks})
    command = shlex.join(["python", "-m", "benchmarks.forwarding", *(sys.argv[1:] if argv is None else argv)])
    path = None
    if not frame.empty:
        print_table(frame, "Transkimmer, skimmed tokens forwarded and discarded: percent, FLOPs speed-up", console)
        path = _write(frame, store, session.profile, command)
        console.print(f"table: {path}", highlight=False, soft_wrap=True)
    answer(arguments, rows=rows_of(frame), failures=failures, table=path, command=command)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _frame(records: Sequence[Record], titles: Mapping[str, str]) -> pd.DataFrame:
    import pandas as pd

    every = [_both_ways(titles[name], [r for r in records if r["config"]["task"] == name]) for name in titles]
    return pd.DataFrame([one.row for one in every if one])


def _write(frame: pd.DataFrame, store: RunStore, profile: str, command: str) -> str:
    """Write the table as CSV and Markdown; returns the Markdown file's path."""
    parts = [
        "# Forwarding against discarding",
        f"Command: `{command}`",
        frame.to_markdown(index=False, disable_numparse=True),
    ]
    return str(write_table(store.root / "tables", f"forwarding-{profile}", frame, parts)[-1])


if __name__ == "__main__":
    sys.exit(run_command(main))
