"""One page with everything that was measured: headline, Tables 1 to 5, figures, audit, latency, and every record.

The page is a single HTML file that opens without a network, from the records and tables of a results folder and, behind
them, the published ones. Nothing is computed anew but the audit's words; a part whose records are missing is left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.cli import OWN_RESULTS, run_command
from benchmarks.console import add_json_flag, answer, open_console
from benchmarks.errors import Parser, UserError
from benchmarks.files import replacing, writing
from benchmarks.report_blocks import FoldBlock, Section, TableBlock, draw
from benchmarks.report_data import Results, read_results
from benchmarks.runs import RESULTS

TITLE = "Transformer encoders that do not compute every token"
INTRODUCTION = (
    "Every published method behind one interface, really removing tokens, measured with one ruler. All numbers on this "
    "page come from records: follow a number to the run that made it, with its configuration, seed, code revision and "
    "machine."
)


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    result = Parser(
        prog="python -m benchmarks.report",
        description=__doc__,
        epilog="example:\n  python -m benchmarks.report --results results --output report.html",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add(
        "--results",
        type=Path,
        metavar="DIR",
        help="a folder with records and tables; default: results/local where it is there",
    )
    add("--own-only", action="store_true", help="leave the published records and tables out")
    add("--output", type=Path, metavar="FILE", help="default: report.html in the results folder")
    add_json_flag(result)
    add("--debug", action="store_true", help="show where an error came from")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = parser().parse_args(argv)
    root = arguments.results or OWN_RESULTS
    if arguments.results is not None and not root.is_dir():
        raise UserError(f"--results {root} is not a folder")
    page = build(read_all(root, published=not arguments.own_only))
    output = arguments.output or root / "report.html"
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(output) as temporary:
            temporary.write_text(page, encoding="utf-8")
    console, notes = open_console(quiet=arguments.json), _told(root, arguments.results is None)
    for line in notes:
        console.print(line, highlight=False, soft_wrap=True)
    size = f"{output.stat().st_size / 1e6:.1f} MB"
    console.print(f"report: {output} ({size})", highlight=False, soft_wrap=True)
    answer(arguments, report=output, bytes=output.stat().st_size, notes=notes)
    return 0


def _told(root: Path, by_default: bool) -> list[str]:
    """What the reader of the page should know of the folder."""
    lines = []
    if by_default and not (root / "runs").is_dir():
        lines.append(f"no results of yours in {root} yet: the page has the published ones")
    if (root / "scratch" / "runs").is_dir():
        lines.append(f"left out: {root / 'scratch'}, of uncommitted code; --results {root / 'scratch'} shows it")
    return lines


def read_all(root: Path, *, published: bool) -> list[Results]:
    """The folder's results and, if wanted, the published ones.

    Raises:
        UserError: neither has a record or a table.
    """
    own = root.resolve() != RESULTS.resolve()
    folders = [(root, "own", "yours")] if own else []
    if published or not own:
        folders.append((RESULTS, "published", "published"))
    found = [read_results(*folder) for folder in folders]
    found = [results for results in found if not results.is_empty]
    if not found:
        raise UserError(f"no records and no tables in {root}; run ./reproduce.sh glue first, or choose with --results")
    return found if len(found) > 1 else [replace(found[0], title="")]


def build(all_results: Sequence[Results]) -> str:
    """The page."""
    from benchmarks.report_case import case_section
    from benchmarks.report_figures import figure_section
    from benchmarks.report_latency import latency_section
    from benchmarks.report_layers import retention_section
    from benchmarks.report_measured import other_section, released_section
    from benchmarks.report_papers import audit_section, paper_table
    from benchmarks.report_records import (
        Environments,
        alone_section,
        environment_section,
        failed_section,
        records_section,
    )
    from benchmarks.report_suites import headline, suite_section, suite_tables
    from benchmarks.token_html import STYLE

    three, four = (list(suite_tables(all_results, name)) for name in ("glue", "long"))
    parts = [
        headline([*three, *four]),
        paper_table(all_results, "table1"),
        paper_table(all_results, "table2"),
        suite_section("table3", "Table 3: scores and speed-ups", three),
        suite_section("table4", "Table 4: long texts", four),
        figure_section(all_results, "figure3", "pareto"),
        figure_section(all_results, "figure4", "strategy", [*three, *four]),
        case_section(all_results),
        retention_section([*three, *four]),
        audit_section(all_results),
        latency_section(all_results),
        released_section(all_results),
        other_section(all_results, KNOWN),
    ]
    environments = Environments(all_results)
    linked = {link for part in parts if part for link in _links(part)}
    parts += [
        failed_section(all_results),
        alone_section(all_results, linked),
        environment_section(environments),
        records_section(all_results, environments),
    ]
    introduction = (INTRODUCTION, *_counted(all_results))
    return draw(TITLE, [part for part in parts if part], introduction=introduction, style=STYLE)


def _counted(all_results: Sequence[Results]) -> list[str]:
    """A sentence per folder with records: how many, and when they were made."""
    lines = []
    for results in all_results:
        days = sorted(record["started_at"][:10] for record in results.records.values())
        if days:
            made = f"on {days[0]}" if days[0] == days[-1] else f"from {days[0]} to {days[-1]}"
            lines.append(f"{len(days)} {results.title} records, made {made}.".replace("  ", " "))
    return lines


KNOWN = ("glue", "long", "table1", "table2", "pareto", "strategy", "audit", "latency", "as_released")


def _links(part: Section | FoldBlock) -> set[str]:
    """Where the tables of a part lead."""
    found: set[str] = set()
    for block in part.blocks:
        if isinstance(block, TableBlock):
            found |= {link for row in block.rows for cell in row.cells for link in cell.links}
        elif isinstance(block, FoldBlock):
            found |= _links(block)
    return found


if __name__ == "__main__":
    sys.exit(run_command(main))
