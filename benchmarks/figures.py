"""Figures 3 and 4 from the records that there are, in seconds: `benchmarks.pareto`, beside it `benchmarks.strategy`."""

from __future__ import annotations

import argparse
import multiprocessing
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

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
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as beside:
        drawing = beside.submit(_layers, arguments, shlex.join([*strategy.PROGRAM.split(), *given]))
        given = ["--from-records", *given]
        command = shlex.join([*pareto.SUITE.program.split(), *given])
        tasks = pareto.from_records(pareto.build_parser().parse_args(given), console, command)
        layers, said = drawing.result()
    console.file.write(said)
    answer(arguments, strategy=layers, pareto={"tasks": tasks, "command": command})
    return 0


def _layers(arguments: argparse.Namespace, command: str) -> tuple[dict[str, Any], str]:
    """Figure 4 in a process of its own, as drawing is what takes time; what it returns, and what it would print."""
    console = open_console(quiet=arguments.json)
    with console.capture() as captured:
        found = strategy.summary(arguments, console, command)
    return found, captured.get()


if __name__ == "__main__":
    sys.exit(run_command(main))
