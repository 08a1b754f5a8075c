"""Data frames on the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

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
