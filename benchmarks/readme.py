"""Write the tables of README.md anew from the files that they name: `python -m benchmarks.readme`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from benchmarks.environment import PROJECT_ROOT

_TABLE = re.compile(r"<!-- table: (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def shown(path: Path) -> str:
    """What the README shows of a table's Markdown file: its first table, and the command that made it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    command = next(line for line in lines if line.startswith("Command: "))
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = lines[first:]
    end = next((number for number, line in enumerate(rows) if not line.startswith("|")), len(rows))
    return "\n".join([*rows[:end], "", command])


def updated(text: str, root: Path = PROJECT_ROOT) -> str:
    """`text` with the table between each `<!-- table: PATH -->` and `<!-- end -->` taken from PATH below `root`."""
    return _TABLE.sub(lambda match: f"<!-- table: {match[1]} -->\n{shown(root / match[1])}\n<!-- end -->", text)


def main() -> int:
    """Rewrite README.md in place."""
    readme = PROJECT_ROOT / "README.md"
    readme.write_text(updated(readme.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
