"""What commands say: data frames on the terminal, or the same as JSON for programs."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

PIPE_WIDTH = 160  # columns where the output is no terminal


def open_console(*, quiet: bool = False) -> Console:
    """The console that commands write their results to; `quiet` writes nothing."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, quiet=quiet)


def print_table(frame: pd.DataFrame, title: str, console: Console) -> None:
    """A table on the terminal; nothing for an empty one."""
    import pandas as pd

    if frame.empty:
        return
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in frame.columns:
        table.add_column(str(column), no_wrap=column != "Method")
    for row in frame.itertuples(index=False):
        table.add_row(*("" if pd.isna(value) else str(value) for value in row))
    console.print(table)


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """`--json`, of commands whose summary a program may want to read."""
    parser.add_argument("--json", action="store_true", help="a summary as JSON on standard output, nothing else there")


def answer(arguments: argparse.Namespace, **summary: Any) -> None:
    """The summary as one JSON object, where `--json` asks for it; the command's console has to be quiet then.

    Paths become strings; data frames go through `rows_of`, where what is missing becomes null.
    """
    if arguments.json:
        print(json.dumps(summary, indent=2, default=str))


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A data frame as plain rows."""
    return json.loads(frame.to_json(orient="records"))
