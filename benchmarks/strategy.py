"""Figure 4: tokens that each layer still computes, per task and method, from the records of finished runs.

The area under a curve is the share of tokens computed over all layers. It would be the share of FLOPs if a layer cost
the same for each token and nothing else were computed; the table has both, so that the difference shows.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cli import OWN_RESULTS, run_command
from benchmarks.console import add_json_flag, answer, open_console, print_table, rows_of
from benchmarks.errors import Parser, UserError
from benchmarks.files import write_table, writing
from benchmarks.runs import RESULTS

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from benchmarks.comparable import Comparison

PROGRAM = "python -m benchmarks.strategy"
HEADING = "Figure 4: tokens computed per layer, percent"
NOTE = (
    "Tokens whose feed-forward a layer computes, of all real tokens of the evaluation split, in percent; a text that "
    "has left computes none. Area: their mean over the layers. FLOPs: executed, of the dense model's, without padding."
)


def record_parser(program: str, description: str, example: str) -> argparse.ArgumentParser:
    """A parser with the flags of commands that draw from records."""
    parser = Parser(
        prog=program,
        description=description,
        epilog=f"example:\n  {program} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--tasks", nargs="+", metavar="TASK", help="default: all with records")
    add("--methods", nargs="+", metavar="METHOD", help="default: all with records")
    add(
        "--results",
        type=Path,
        metavar="DIR",
        help="where records are, and tables and figures go; default: results/local, with the published records in "
        "results where it has none",
    )
    add_json_flag(parser)
    add("--quiet", action="store_true", help="nothing but where the outputs are")
    add("--debug", action="store_true", help="show where an error came from")
    return parser


def folders(results: Path | None) -> tuple[Path, Path]:
    """Where records are read, and where tables and figures go."""
    if results is not None:
        return results, results
    return (OWN_RESULTS if (OWN_RESULTS / "runs").is_dir() else RESULTS), OWN_RESULTS


def check_methods(names: Sequence[str]) -> None:
    """Refuse what is no method.

    Raises:
        UserError: it says which and what can be.
    """
    import methods

    for name in names:
        try:
            methods.lookup(name)
        except KeyError as error:
            raise UserError(str(error.args[0])) from error


def layer_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row per method and seed: what the figure and the table are made of."""
    import methods
    from benchmarks.comparable import first_split, own_settings

    rows = []
    for record in own_settings(comparison.records):
        method, cost = record["config"]["method"], first_split(record)["cost"]
        if method == "random":
            continue  # its lines are those of the methods that it follows
        rows.append(
            {
                "task": comparison.title,
                "name": comparison.task,
                "method": method,
                "title": methods.lookup(method).traits.title,
                "seed": record["config"]["seed"],
                "shares": cost["ffn_share"],
                "area": sum(cost["ffn_share"]) / len(cost["ffn_share"]),
                "speedup": cost["padding"]["none"]["speedup"],
                "record": record["config_hash"],
            }
        )
    return rows


def strategy_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One line per task and method, seeds averaged: shares per layer, area, FLOPs ratio."""
    import pandas as pd

    from plots.style import lines_of

    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        for title in lines_of(row for row in rows if row["task"] == task):
            mine = [row for row in rows if (row["task"], row["title"]) == (task, title)]
            layers = zip(*(row["shares"] for row in mine), strict=True)
            area = sum(row["area"] for row in mine) / len(mine)
            ratio = sum(1 / row["speedup"] for row in mine) / len(mine)
            lines.append(
                {
                    "task": task,
                    "method": mine[0]["method"],
                    "title": title,
                    "seeds": len(mine),
                    **{f"layer_{i}": sum(shares) / len(mine) for i, shares in enumerate(layers, 1)},
                    "area": area,
                    "flops_ratio": ratio,
                    "speedup_if_area": 1 / area,
                    "speedup": sum(row["speedup"] for row in mine) / len(mine),
                    "records": " ".join(row["record"] for row in mine),
                }
            )
    return pd.DataFrame(lines)


def printed(frame: pd.DataFrame) -> pd.DataFrame:
    """What people read of the table: percent and speed-ups."""
    import pandas as pd

    layers = [name for name in frame.columns if name.startswith("layer_")]
    texts = {"Task": frame["task"], "Method": frame["title"]}
    if frame["seeds"].max() > 1:
        texts["Seeds"] = frame["seeds"]
    dash = "\N{EN DASH}"
    for name in layers:
        shares = [dash if pd.isna(share) else f"{100 * share:.0f}" for share in frame[name]]
        texts[f"Layer {name.removeprefix('layer_')}"] = shares
    texts["Area"] = [f"{100 * area:.1f}" for area in frame["area"]]
    texts["FLOPs"] = [f"{100 * ratio:.1f}" for ratio in frame["flops_ratio"]]
    texts["1 / area"] = [f"{value:.2f}x" for value in frame["speedup_if_area"]]
    texts["FLOPs speed-up"] = [f"{value:.2f}x" for value in frame["speedup"]]
    return pd.DataFrame(texts)


def draw(rows: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Write the figure of all tasks, `strategy`, and one per task, `strategy-TASK`; returns the SVG files' paths."""
    from plots.layers import layer_figure
    from plots.style import save

    tasks = dict.fromkeys(row["name"] for row in rows)
    with writing(folder):
        saved = save(layer_figure(rows, columns=min(len(tasks), 2)), folder, "strategy")[:1]
        for name in tasks:
            saved += save(layer_figure([row for row in rows if row["name"] == name]), folder, f"strategy-{name}")[:1]
    return saved


def write(frame: pd.DataFrame, folder: Path, command: str, notes: Sequence[str]) -> list[Path]:
    """Write the table as CSV and Markdown; returns the paths."""
    parts = [f"# {HEADING}", f"Command: `{command}`", NOTE, printed(frame).to_markdown(index=False)]
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    return write_table(folder, "strategy", frame, parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = record_parser(PROGRAM, __doc__ or "", "--tasks sst2 mrpc --results results")
    arguments = parser.parse_args(argv)
    command = shlex.join([*PROGRAM.split(), *(argv if argv is not None else sys.argv[1:])])
    answer(arguments, **summary(arguments, open_console(quiet=arguments.json), command))
    return 0


def summary(arguments: argparse.Namespace, console: Console, command: str) -> dict[str, Any]:
    """Print and write the table and the figures; returns the rows and where everything is."""
    from benchmarks.comparable import read_comparisons

    check_methods(arguments.methods or ())
    if "random" in (arguments.methods or ()):
        raise UserError("random dropping has the curve of the method that it follows; name that method in --methods")
    source, target = folders(arguments.results)
    rows, notes = [], []
    for comparison in read_comparisons(source, tuple(dict.fromkeys(arguments.tasks or ()))):
        chosen = comparison.narrowed(arguments.methods) if arguments.methods else comparison
        rows += layer_rows(chosen) if chosen.records else []
        if comparison.others:
            notes.append(
                f"{comparison.title}: {comparison.others} runs on other rows, encoders or recipes are left out"
            )
    if not rows:
        if arguments.methods:
            told = f"of {', '.join(arguments.methods)} in {source / 'runs'}; leave out --methods"
        else:
            told = f"of a method at its own setting in {source / 'runs'}; train some first"
        raise UserError(f"no finished runs {told}")
    frame = strategy_table(rows)
    paths = draw(rows, target / "figures")
    tables = write(frame, target / "tables", command, notes)
    if not arguments.quiet:
        print_table(printed(frame), HEADING, console)
        for note in notes:
            console.print(note, highlight=False)
    console.print(f"tables: {', '.join(str(path) for path in tables)}", highlight=False, soft_wrap=True)
    shown = ", ".join(str(path) for path in paths)
    console.print(f"figures (also as PNG and PDF): {shown}", highlight=False, soft_wrap=True)
    return {"rows": rows_of(frame), "notes": notes, "tables": tables, "figures": paths, "command": command}


if __name__ == "__main__":
    sys.exit(run_command(main))
