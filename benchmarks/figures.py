"""Figures 3 and 4 from the records that there are, in seconds: `benchmarks.strategy`, then `benchmarks.pareto`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from benchmarks import pareto, strategy
from benchmarks.cli import run_command
from benchmarks.console import answer, open_console


def main(argv: Sequence[str] | None = None) -> int:
    """Run both with the same arguments; returns the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = strategy.record_parser(
        "python -m benchmarks.figures", __doc__ or "", "--tasks sst2 mrpc --results results"
    )
    arguments = parser.parse_args(given)
    console = open_console(quiet=arguments.json)
    layers = strategy.summary(arguments, console, shlex.join([*strategy.PROGRAM.split(), *given]))
    given = ["--from-records", *given]
    command = shlex.join([*pareto.SUITE.program.split(), *given])
    tasks = pareto.from_records(pareto.build_parser().parse_args(given), console, command)
    answer(arguments, strategy=layers, pareto={"tasks": tasks, "command": command})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
