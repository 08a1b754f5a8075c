"""Figure 3: score against speed-up, every method swept over its own settings, per padding setting.

Swept is what a method's paper turns: the entropy at which a text exits, the weight of the skim loss, the lengths
that a search found. What is missing is trained, or, where a setting needs no training, scored again; what is there is
reused.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import glue, long
from benchmarks.cli import OWN_RESULTS, Session, check_from_records, open_session, parser, run_command
from benchmarks.console import add_json_flag, answer, open_console, print_table, rows_of
from benchmarks.errors import UserError
from benchmarks.files import write_table, writing
from benchmarks.progress import duration
from benchmarks.suite import WORTH, Suite, drop_missing_tasks
from benchmarks.sweep import left_out
from benchmarks.tasks import TASKS

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from benchmarks.comparable import Comparison

SUITE = Suite(
    name="pareto",
    description=__doc__ or "",
    example="--dataset mrpc --profile local --data-dir DIR --max-train-samples 3000 --points 5",
    table="3",
    tasks={"embedded": ("synthetic_squad_v2",), "local": ("squad_v2", "mrpc"), "paper": ("squad_v2", "mrpc")},
    encoders={"BERT-base": None},
    # As in `glue` and `long`, whose runs are then reused.
    embedded_rows=long.SUITE.embedded_rows,
    rows_of={"vader_sentiment": glue.SUITE.embedded_rows, **glue.SUITE.rows_of, **long.SUITE.rows_of},
)
# What the embedded profile has in the place of a data set.
STAND_INS = {
    "squad_v2": "synthetic_squad_v2",
    "20news": "orange_20news",
    "sst2": "vader_sentiment",
    "stsb": "vader_valence",
    "mrpc": "synthetic_pair",
    "qqp": "synthetic_pair",
    "mnli": "synthetic_pair",
    "rte": "synthetic_pair",
}
EMBEDDED_METHODS = ("dense", "transkimmer", "lat", "ltp", "deebert", "pabee", "random")  # few trainings, many points
POINTS = {"embedded": 3, "local": 4, "paper": 5}
EMBEDDED_BUDGET_MIN = 17.0
SHOWN_DROP = 20.0  # points below the dense model's score where the figure's axis ends
METRIC_TITLES = {
    "accuracy": "Accuracy (%)",
    "f1": "F1 (%)",
    "squad_f1": "F1 (%)",
    "matthews_correlation": "Matthews correlation x 100",
    "pearson": "Pearson correlation x 100",
}
DRAWN_WITH = ("tasks", "dataset", "methods", "padding", "from_records", "results", "json", "quiet", "debug")
NOTE = (
    "Score in percent, mean of the seeds, with the middle 95 % of 1,000 draws of the evaluation texts (and seeds) in "
    "brackets. Front: no point of any method is better in score and speed-up; own front: none of the same method."
)


def build_parser() -> argparse.ArgumentParser:
    """The shared flags and those of a sweep."""
    result = parser(SUITE)
    add = result.add_argument
    add("--dataset", nargs="+", metavar="TASK", help="the same as --tasks")
    add("--points", type=int, metavar="N", help=f"settings per method, twice as many without training; {POINTS}")
    add(
        "--speedups",
        nargs="+",
        type=float,
        metavar="S",
        help="instead of fixed settings train those that come near these speed-ups, --points at most for each; what "
        "needs no training is turned as well until it is near them",
    )
    add(
        "--budget",
        type=float,
        metavar="MINUTES",
        help="start no further round of settings, and towards --speedups no further training, that would end later; "
        f"default: none, in the embedded profile {EMBEDDED_BUDGET_MIN:g}",
    )
    add("--from-records", action="store_true", help="train nothing: draw what the records in --results have")
    add_json_flag(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    flags = build_parser()
    arguments = flags.parse_args(argv)
    arguments.tasks = [*(arguments.tasks or ()), *(arguments.dataset or ())] or None
    check_from_records(arguments)
    if arguments.points is not None and arguments.points < 1:
        raise UserError(f"--points must be at least 1, got {arguments.points}")
    if arguments.budget is not None and not arguments.budget > 0:
        raise UserError(f"--budget is in minutes and must be more than 0, got {arguments.budget:g}")
    if arguments.speedups and not min(arguments.speedups) > 1:
        raise UserError(f"--speedups must be above 1, got {min(arguments.speedups):g}")
    console = open_console(quiet=arguments.json)
    command = shlex.join([*SUITE.program.split(), *(argv if argv is not None else sys.argv[1:])])
    if arguments.from_records:
        given = (name for name, value in vars(arguments).items() if value != flags.get_default(name))
        if unread := [f"--{name.replace('_', '-')}" for name in given if name not in DRAWN_WITH]:
            raise UserError(f"--from-records draws what the records have: {unread[0]} changes nothing; leave it out")
        answer(arguments, tasks=from_records(arguments, console, command), command=command)
        return 0
    session = stand_in(open_session(arguments, SUITE), console)
    session = replace(session, quiet=session.quiet or arguments.json)
    if session.profile == "embedded" and not arguments.methods:
        session = replace(session, methods=EMBEDDED_METHODS)
    names = ", ".join(model.title for model in session.models)
    console.print(f"profile {session.profile}: {names}; {WORTH[session.profile]}", highlight=False)
    points = arguments.points or POINTS[session.profile]
    for line in left_out(session):
        console.print(line, highlight=False)
    budget = arguments.budget or (EMBEDDED_BUDGET_MIN if session.profile == "embedded" else math.inf)
    found = _sweep(session, points, tuple(arguments.speedups or ()), 60 * budget, console, command)
    answer(arguments, **found, command=command)
    for failure in found.get("failures", ()):
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if found.get("failures") else 0


def stand_in(session: Session, console: Console) -> Session:
    """In the embedded profile, its own tasks in the place of data sets that it does not have, which is said."""
    from benchmarks.tasks import EMBEDDED, EMBEDDED_LONG

    own = (*EMBEDDED, *EMBEDDED_LONG)
    if session.profile != "embedded":
        return session
    chosen = []
    for task in session.tasks:
        name = STAND_INS.get(task.name, task.name)
        if name not in own:
            raise UserError(
                f"the embedded profile has neither {task.title} nor a stand-in for it; it has {', '.join(own)}; "
                "--profile local with --data-dir reads files of your own"
            )
        if name != task.name:
            console.print(
                f"{task.title} is not among the embedded data: {TASKS[name].title} stands in for it, and says nothing "
                f"about {task.title} itself",
                highlight=False,
                soft_wrap=True,
            )
        chosen.append(TASKS[name])
    return replace(session, tasks=tuple(dict.fromkeys(chosen)))


def _sweep(
    session: Session, points: int, speedups: Sequence[float], budget_s: float, console: Console, command: str
) -> dict[str, Any]:
    """Run what is missing and draw; returns what there is to say, of a dry run its runs."""
    from benchmarks.comparable import Comparison
    from benchmarks.pareto_forecast import show_plan
    from benchmarks.pareto_runs import planned, sweep

    if session.dry_run and session.profile == "paper":
        experiments = planned(session, 1 if speedups else points)
        show_plan(experiments, console)
        return {"runs": [experiment.label for experiment in experiments]}
    session = drop_missing_tasks(session, console)
    store = session.store()
    experiments = planned(session, 1 if speedups else points)
    _say_plan(session, experiments, store, points, console)
    if speedups:
        wished = " and ".join(f"{speedup:g}x" for speedup in speedups)
        console.print(f"then up to {points} trainings of each method towards each of {wished}", highlight=False)
    if session.dry_run:
        return {"runs": [experiment.label for experiment in experiments]}
    found = sweep(session, experiments, store, points, budget_s, speedups)
    if found.left_out:
        console.print(f"{found.left_out} runs left out, --budget of {duration(budget_s)}; the same command goes on")
    drawn = []
    for task in session.tasks:
        records = tuple(record for experiment, record in found.runs if experiment.task == task)
        if records:
            comparison = Comparison(task.name, records)
            drawn.append(_draw(comparison, session.paddings, store.root, store.root, console, command))
    console.print(f"records: {store.root / 'runs'}", highlight=False, soft_wrap=True)
    if store.is_scratch:
        console.print("the work tree has changes, so these results are scratch: commit, then run again")
    return {
        "tasks": drawn,
        "failures": found.failures,
        "left_out": found.left_out,
        "records": store.root / "runs",
    }


def _say_plan(session: Session, experiments: Sequence[Any], store: Any, points: int, console: Console) -> None:
    """How many runs and about how long, first."""
    from benchmarks.pareto_forecast import forecast

    plan = forecast(session, experiments, store, points)
    console.print(
        f"{plan.to_train} runs to train ({plan.there} are there already), {plan.to_score} to score again; "
        f"about {duration(plan.seconds)}, {session.place}, by the pace of the dense model",
        highlight=False,
        soft_wrap=True,
    )
    if session.dry_run:
        for line in plan.lines:
            console.print(line, highlight=False, soft_wrap=True)


def from_records(arguments: argparse.Namespace, console: Console, command: str) -> list[dict[str, Any]]:
    """Draw what the records have; returns, task by task, the points and where everything is."""
    from benchmarks.comparable import read_comparisons
    from benchmarks.strategy import check_methods, folders

    check_methods(arguments.methods or ())
    results = None if arguments.results == OWN_RESULTS else arguments.results
    source, target = folders(results)
    drawn = []
    for comparison in read_comparisons(source, tuple(dict.fromkeys(arguments.tasks or ()))):
        chosen = comparison.narrowed(("dense", *arguments.methods)) if arguments.methods else comparison
        if len({record["config"]["method"] for record in chosen.records}) > 1:
            paddings = tuple(arguments.padding)
            drawn.append(_draw(chosen, paddings, source, target, console, command, quiet=arguments.quiet))
    if not drawn:
        raise UserError(f"no task in {source / 'runs'} has records of dense and another method; train some first")
    return drawn


def _draw(
    comparison: Comparison,
    paddings: Sequence[str],
    source: Path,
    root: Path,
    console: Console,
    command: str,
    *,
    quiet: bool = False,
) -> dict[str, Any]:
    """Write figures and tables of one task below `root`, and print the tables; times are read below `source`.

    Returns:
        The rows of the tables and where everything is.
    """
    import pandas as pd

    from benchmarks.pareto_rows import hypervolumes, pareto_rows, reported_rows
    from benchmarks.pareto_times import time_rows
    from plots.pareto import pareto_figure
    from plots.style import save

    rows, reported = pareto_rows(comparison, paddings), reported_rows(comparison, paddings)
    ordered = sorted(rows, key=lambda row: row["speedup"])
    score = METRIC_TITLES.get(comparison.metric, comparison.metric)
    reference = [row["score"] for row in rows if row["method"] == "dense"] or [row["score"] for row in rows]
    lowest = max(reference) - SHOWN_DROP
    figure = pareto_figure(
        [row | {"panel": row["padding"]} for padding in paddings for row in ordered if row["padding"] == padding],
        score=score,
        lowest=lowest,
        reported=[row | {"panel": row["padding"]} for row in reported],
        reported_title="Reported, BERT-base",
    )
    name, heading = f"pareto-{comparison.task}", f"Figure 3: score against speed-up, {comparison.title}"
    frame, volumes = pd.DataFrame(rows).drop(columns="hollow"), pd.DataFrame(hypervolumes(comparison, paddings))
    with writing(root):
        figures = save(figure, root / "figures", name)
        tables = _write(frame, volumes, reported, root / "tables", name, heading, command)
        if times := time_rows(comparison, source, paddings):
            timed = pareto_figure(times, score=score, lowest=lowest, speed="Measured speed-up (time)")
            figures += save(timed, root / "figures", f"{name}-time")
            tables.append(root / "tables" / f"{name}-time.csv")
            pd.DataFrame(times).to_csv(tables[-1], index=False, float_format="%.6g")
    if not quiet:
        print_table(printed_points(frame), heading, console)
        print_table(printed_volumes(volumes), "Hypervolume", console)
    console.print(f"tables: {', '.join(str(path) for path in tables)}", highlight=False, soft_wrap=True)
    figures = [path for path in figures if path.suffix == ".svg"]
    shown = ", ".join(map(str, figures))
    console.print(f"figures (also as PNG and PDF): {shown}", highlight=False, soft_wrap=True)
    return {
        "task": comparison.task,
        "points": rows_of(frame),
        "hypervolumes": rows_of(volumes),
        "tables": tables,
        "figures": figures,
    }


def printed_points(frame: pd.DataFrame) -> pd.DataFrame:
    """What people read of the points."""
    import pandas as pd

    from benchmarks.tables import PADDING_TITLES

    return pd.DataFrame(
        {
            "Padding": frame["padding"].map(PADDING_TITLES),
            "Method": frame["title"],
            "Setting": frame["setting"],
            "Seeds": frame["seeds"],
            "Speed-up": [f"{value:.2f}x" for value in frame["speedup"]],
            "Score": [_with_interval(row, "score", 1) for row in frame.to_dict("records")],
            "Interval from": frame["interval_from"],
            "Front": ["yes" if on else "" for on in frame["on_front"]],
            "Own front": ["yes" if on else "" for on in frame["on_own_front"]],
        }
    )


def printed_volumes(frame: pd.DataFrame) -> pd.DataFrame:
    """What people read of the hypervolumes."""
    import pandas as pd

    from benchmarks.tables import PADDING_TITLES

    if frame.empty:
        return frame
    return pd.DataFrame(
        {
            "Padding": frame["padding"].map(PADDING_TITLES),
            "Method": frame["title"],
            "Points": frame["points"],
            "Hypervolume": [_with_interval(row, "hypervolume", 2) for row in frame.to_dict("records")],
        }
    )


def _with_interval(row: dict[str, Any], name: str, digits: int) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    known = low is not None and high is not None and not math.isnan(low) and not math.isnan(high)
    return f"{row[name]:.{digits}f}" + (f" [{low:.{digits}f}, {high:.{digits}f}]" if known else "")


def _write(
    frame: pd.DataFrame,
    volumes: pd.DataFrame,
    reported: Sequence[dict[str, Any]],
    folder: Path,
    name: str,
    heading: str,
    command: str,
) -> list[Path]:
    from benchmarks.pareto_rows import WORST_DROP

    parts = [f"# {heading}", f"Command: `{command}`", NOTE, printed_points(frame).to_markdown(index=False)]
    if not volumes.empty:
        note = (
            "Area that a method's points dominate, in points of score times speed-ups above 1: it begins at a speed-up "
            f"of 1 and {WORST_DROP:g} points below the dense model."
        )
        parts += ["## Hypervolume", note, printed_volumes(volumes).to_markdown(index=False)]
    if reported:
        parts.append(
            "The figure's hollow circles are what the Transkimmer paper prints for BERT-base under this convention of "
            "cost (results/reported/transkimmer.csv); mind the model and the rows of the runs here."
        )
    paths = write_table(folder, name, frame, parts)
    if not volumes.empty:
        paths.append(folder / f"{name}-hypervolume.csv")
        volumes.to_csv(paths[-1], index=False, float_format="%.6g")
    return paths


if __name__ == "__main__":
    sys.exit(run_command(main))
