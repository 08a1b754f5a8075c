"""Twins trained as long: random dropping with as many updates as the method that it follows has.

The usual twin takes half an epoch, methods one to three, so that a lead over it may be training alone. Here each method
has both twins, of one schedule and from one dense model. What is there of a command with the same flags is reused.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import TYPE_CHECKING, Any

import methods
from benchmarks.cli import open_session, parser, run_command
from benchmarks.comparable import conditions, described, first_split, is_current, own_settings, task_title
from benchmarks.compared import Difference, difference_of, holm, rows_note, starts_whole
from benchmarks.console import add_json_flag, answer, open_console, print_table, rows_of
from benchmarks.errors import UserError
from benchmarks.experiments import KIND
from benchmarks.files import write_table
from benchmarks.flops import equal_cost_schedule
from benchmarks.glue import SUITE as GLUE
from benchmarks.plain import canonical_json, plain
from benchmarks.runs import Record
from benchmarks.suite import drop_missing_tasks
from benchmarks.sweep import execute, has_twin, planned, usual_twins
from methods.recipes import FINE_TUNE

if TYPE_CHECKING:
    import pandas as pd

    from benchmarks.experiments import Experiment
    from benchmarks.runs import RunStore

SUITE = replace(
    GLUE,
    name="twins",
    description=__doc__ or "",
    example="--profile local --data-dir DIR --tasks stsb --methods ltp transkimmer --max-train-samples 2000",
    tasks={**GLUE.tasks, "embedded": ("vader_sentiment",)},
)
NOTE = "trained as long"


@dataclass(frozen=True)
class Twins:
    """A method on a task beside both of its twins, with the same seeds.

    Attributes:
        own, short, long: percent, of each seed. epochs: of the method, and so of the long twin. ahead: the method minus
            the usual twin; still_ahead: minus the long one; gain: the long twin minus the usual one. Each is None where
            outcomes of texts are unknown. records: the method's, then those of the usual and the long twins.
    """

    task: str
    method: str
    seeds: tuple[int, ...]
    speedup: float
    own: tuple[float, ...]
    short: tuple[float, ...]
    long: tuple[float, ...]
    epochs: float
    ahead: Difference | None
    still_ahead: Difference | None
    gain: Difference | None
    records: tuple[str, ...]

    @property
    def differences(self) -> tuple[Difference, ...]:
        """All that are known."""
        return tuple(d for d in (self.ahead, self.still_ahead, self.gain) if d is not None)

    def judged(self, limit: float) -> Twins:
        """With differences decided whose p is at most `limit`."""
        ahead, still, gain = (d and d.judged(limit) for d in (self.ahead, self.still_ahead, self.gain))
        return replace(self, ahead=ahead, still_ahead=still, gain=gain)

    @property
    def row(self) -> dict[str, str]:
        """Of a table, by column."""
        own, short, long = (" ".join(f"{score:.1f}" for score in some) for some in (self.own, self.short, self.long))
        ahead, still, gain = (d.text if d else "" for d in (self.ahead, self.still_ahead, self.gain))
        return {
            "Task": self.task,
            "Method": self.method,
            "Seeds": " ".join(map(str, self.seeds)),
            "Score": f"{own} at {self.speedup:.2f}x",
            "Twin, half an epoch": short,
            "Above it": ahead,
            "Twin, as long": f"{long} ({self.epochs:g})",
            "Above that": still,
            "Twin's gain": gain,
            "Records": " ".join(self.records),
        }


def trained_as_long(twin: Experiment, experiment: Experiment) -> Experiment:
    """The same random dropping with as many updates as `experiment` takes, the rate falling over all of them."""
    epochs = _epochs(plain(experiment.stages, "stages"))
    return replace(twin, stages=tuple(stage.but(epochs=epochs) for stage in twin.stages), note=NOTE)


def _epochs(stages: Iterable[Mapping[str, Any]]) -> float:
    """Passes over the training rows from the dense model on, as recorded."""
    return sum(stage["epochs"] for stage in stages if stage["name"] != FINE_TUNE)


def both_twins(records: Iterable[Record]) -> list[Twins]:
    """Of each task and method the seeds that have both twins, where there are any, judged by Holm's correction.

    Args:
        records: finished runs of any tasks.
    """
    runs: dict[str, list[Record]] = {}
    for record in records:
        runs.setdefault(canonical_json(conditions(record["config"])), []).append(record)
    found = [one for some in runs.values() for one in _of_runs(some)]
    limit = holm([difference.p for one in found for difference in one.differences])
    return [one.judged(limit) for one in sorted(found, key=lambda one: (one.task, one.method))]


def _of_runs(records: Sequence[Record]) -> list[Twins]:
    """Of comparable runs of one task."""
    dropping: dict[str, list[Record]] = {}
    for record in records:
        config = record["config"]
        if config["method"] == "random" and record["kind"] == KIND:
            dropping.setdefault(_key(config["seed"], config["options"]["keep_schedule"]), []).append(record)
    triples: dict[str, list[tuple[Record, Record, Record]]] = {}
    several = any(len(some) > 1 for some in dropping.values())
    for own in own_settings(records) if several else ():
        config = own["config"]
        if config["method"] in ("dense", "random"):
            continue
        twins = dropping.get(_key(config["seed"], equal_cost_schedule(first_split(own)["cost"])), [])
        short = [twin for twin in twins if is_current(twin["config"])]
        long = [twin for twin in twins if twin not in short and _is_longer(twin, _epochs(config["stages"]))]
        if short and long:
            triples.setdefault(config["method"], []).append((own, short[0], long[0]))
    return [_one(method, some) for method, some in triples.items()]


def _key(seed: int, schedule: Sequence[float]) -> str:
    return canonical_json([seed, schedule])


def _is_longer(twin: Record, epochs: float) -> bool:
    """Whether a record is of the recipe of a usual twin in all but `epochs`."""
    stages = twin["config"]["stages"]
    usual = plain(methods.lookup("random").recipe_stages(described(twin["config"]), twin["config"]["recipe"]), "stages")
    return bool(stages == [{**stage, "epochs": plain(epochs, "epochs")} for stage in usual])


def _one(method: str, triples: Sequence[tuple[Record, Record, Record]]) -> Twins:
    own, short, long = zip(*sorted(triples, key=lambda some: some[0]["config"]["seed"]), strict=True)
    config = own[0]["config"]
    title, rows = task_title(config["task"], own[0]), config["max_train_samples"]
    return Twins(
        task=title if rows is None else f"{title} ({rows_note(rows, whole=starts_whole(own[0]))})",
        method=methods.lookup(method).traits.title,
        seeds=tuple(record["config"]["seed"] for record in own),
        speedup=mean(first_split(record)["cost"]["padding"]["none"]["speedup"] for record in own),
        own=_scores(own),
        short=_scores(short),
        long=_scores(long),
        epochs=_epochs(config["stages"]),
        ahead=difference_of(own, short),
        still_ahead=difference_of(own, long),
        gain=difference_of(long, short),
        records=tuple(record["config_hash"] for record in (*own, *short, *long)),
    )


def _scores(records: Iterable[Record]) -> tuple[float, ...]:
    return tuple(100 * record["metrics"]["score"] for record in records)


def summary(twins: Sequence[Twins]) -> str:
    """What longer training gains, and what it leaves of the methods' leads."""
    gains = [one.gain.points for one in twins if one.gain]
    ahead = [one for one in twins if one.ahead and one.ahead.decided_sign > 0]
    still = sum(one.still_ahead is not None and one.still_ahead.decided_sign > 0 for one in ahead)
    text = (
        "The usual twin trains half an epoch, methods one to three. Here a second one, of the same schedule and from "
        "the same dense model, has as many updates as its method (`python -m benchmarks.twins`); epochs in brackets. "
    )
    if not gains:
        return text + "What single texts came out as is not known."
    return text + (
        f"It gains {mean(gains):+.1f} points on average ({min(gains):+.1f} to {max(gains):+.1f}); of {len(ahead)} "
        f"methods certainly above the usual twin {still} are certainly above the longer one (Holm's correction over "
        "this table)."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    flags = parser(SUITE, unpadded=True)
    add_json_flag(flags)
    arguments = flags.parse_args(argv)
    session = open_session(arguments, SUITE)
    session = replace(session, quiet=session.quiet or arguments.json)
    chosen = tuple(name for name in session.methods if name not in ("dense", "random"))
    if not chosen:
        raise UserError("--methods: name at least one that has a twin, such as transkimmer")
    session = replace(session, methods=("dense", *chosen, "random"))
    console = open_console(quiet=arguments.json)
    if not session.dry_run:
        session = drop_missing_tasks(session, console)
    experiments = [experiment for experiment in planned(session) if has_twin(session, experiment)]
    if session.dry_run:
        labels = [label for one in experiments for label in (one.label, *(twin.label for twin in _both(one, None)))]
        for label in labels:
            console.print(label, highlight=False)
        answer(arguments, runs=labels)
        return 0
    outcome = execute(session, session.store(), _both)
    frame = _frame([entry.record for entry in outcome.entries])
    command = shlex.join(["python", "-m", "benchmarks.twins", *(sys.argv[1:] if argv is None else argv)])
    path = None
    if not frame.empty:
        print_table(
            frame.drop(columns="Records"), "Random twins of half an epoch and as long as their methods", console
        )
        path = _write(frame, session.store(), session.profile, command)
        console.print(f"table: {path}", highlight=False, soft_wrap=True)
    answer(arguments, rows=rows_of(frame), failures=outcome.failures, table=path, command=command)
    for failure in outcome.failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if outcome.failures else 0


def _both(experiment: Experiment, record: Record | None) -> tuple[Experiment, ...]:
    """The usual random twin, and the same trained as long as its method."""
    (usual,) = usual_twins(experiment, record)
    return usual, trained_as_long(usual, experiment)


def _frame(records: Sequence[Record]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([one.row for one in both_twins(records)])


def _write(frame: pd.DataFrame, store: RunStore, profile: str, command: str) -> str:
    """Write the table as CSV and Markdown; returns the Markdown file's path."""
    parts = [
        "# Twins trained as long as their methods",
        f"Command: `{command}`",
        frame.to_markdown(index=False, disable_numparse=True),
    ]
    return str(write_table(store.root / "tables", f"twins-{profile}", frame, parts)[-1])


if __name__ == "__main__":
    sys.exit(run_command(main))
