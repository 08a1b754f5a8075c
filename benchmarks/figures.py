"""Figures 3 and 4 from the records that there are, in seconds: `benchmarks.strategy`, then `benchmarks.pareto`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks import pareto, strategy
from benchmarks.cli import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run both with the same arguments; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = strategy.record_parser(
        "python -m benchmarks.figures", __doc__ or "", "--tasks sst2 mrpc --results results"
    )
    parser.parse_args(arguments)
    return strategy.main(arguments) or pareto.main(["--from-records", *arguments])


if __name__ == "__main__":
    sys.exit(run_command(main))
