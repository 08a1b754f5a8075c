"""Write the tables of README.md and docs/ anew from the files that they name.

`<!-- table: PATH -->` shows the first table of a Markdown file, `<!-- table: PATH#at-a-glance -->` the first one below
that heading, `<!-- table: PATH padding: No Batch -->` the rows of these padding settings alone; what stands up to
`<!-- end -->` is replaced. See also `benchmarks.docs`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cli import run_command
from benchmarks.environment import PROJECT_ROOT
from benchmarks.errors import Parser

_TABLE = re.compile(r"<!-- table: (\S+)( padding: [^\n]+?)? -->\n.*?<!-- end -->", re.DOTALL)


def shown(path: Path, paddings: list[str] | None = None, heading: str = "") -> str:
    """What the README shows of a table's Markdown file: its first table, and the command that made it.

    Args:
        paddings: the settings whose rows are shown, as the table prints them; None shows every row.
        heading: the anchor of the heading that the table stands below; empty: of none.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    command = next(line for line in lines if line.startswith("Command: "))
    below = next((number for number, line in enumerate(lines) if not heading or _anchor(line) == heading), None)
    if below is None:
        raise ValueError(f"{path} has no heading #{heading}")
    rows = lines[next(number for number in range(below, len(lines)) if lines[number].startswith("|")) :]
    end = next((number for number, line in enumerate(rows) if not line.startswith("|")), len(rows))
    return "\n".join([*_chosen(rows[:end], paddings), "", command])


def _anchor(line: str) -> str:
    """Of a heading, as links name it; empty for other lines."""
    return re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") if line.startswith("#") else ""


def _chosen(table: list[str], paddings: list[str] | None) -> list[str]:
    if paddings is None:
        return table
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in table]
    place = cells[0].index("Padding")
    return [row for number, row in enumerate(table) if number < 2 or cells[number][place] in paddings]


def updated(text: str, root: Path = PROJECT_ROOT) -> str:
    """`text` with the table between each `<!-- table: PATH -->` and `<!-- end -->` taken from PATH below `root`."""

    def renewed(match: re.Match[str]) -> str:
        paddings = match[2].removeprefix(" padding: ").split() if match[2] else None
        name, _, heading = match[1].partition("#")
        return f"<!-- table: {match[1]}{match[2] or ''} -->\n{shown(root / name, paddings, heading)}\n<!-- end -->"

    return _TABLE.sub(renewed, text)


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    result = Parser(
        prog="python -m benchmarks.readme",
        description=__doc__,
        epilog="example:\n  python -m benchmarks.readme --check",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "--check", action="store_true", help="write nothing: status 1, and their names, if pages are old"
    )
    result.add_argument("--debug", action="store_true", help="show where an error came from")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite README.md and the pages of docs/ in place; returns the exit status."""
    arguments = parser().parse_args(argv)
    from benchmarks import docs

    old = 0
    for path in (PROJECT_ROOT / "README.md", *docs.pages()):
        text = path.read_text(encoding="utf-8")
        new = docs.updated(updated(text))
        if new == text:
            continue
        old += 1
        print(f"{'old' if arguments.check else 'written'}: {path.relative_to(PROJECT_ROOT)}")
        if not arguments.check:
            path.write_text(new, encoding="utf-8")
    return 1 if old and arguments.check else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
