"""The report's parts for what other commands left: as released, and tables that have no part of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from benchmarks import as_released
from benchmarks.report_blocks import Block, CommandBlock, HeadingBlock, ListBlock, Section, TableBlock, verbatim
from benchmarks.report_data import Results, Table, command_of
from benchmarks.runs import Record
from benchmarks.tasks import TASKS

RELEASED_LEAD = (
    "The same trained weights run both ways: tokens removed, and as the published code does it. Read the speed-ups "
    "first: code that only hides tokens executes all of them; then how many predictions it changes."
)
OTHER_LEAD = "Tables in the results folder that other commands wrote, as they are."


def released_section(all_results: Sequence[Results]) -> Section | None:
    """What published code computes, each row with its record."""
    blocks: list[Block] = []
    for results, table in tables_of(all_results, "as_released"):
        block = verbatim(table, results, "Score in percent and FLOPs speed-up without padding.", headings=2)
        blocks.append(HeadingBlock(_profile(table), results.title))
        blocks.append(_linked(block, table, results))
        blocks += [CommandBlock(table.command)] if table.command else []
    return Section("as-released", "As released", RELEASED_LEAD, tuple(blocks)) if blocks else None


def _linked(block: TableBlock, table: Table, results: Results) -> TableBlock:
    """Rows that a record makes, word for word, lead to it."""
    anchors = {
        line: results.anchors(run)
        for run, record in results.records.items()
        if record["kind"] == as_released.KIND and record["status"] == "ok" and (line := _line(record, table.columns))
    }
    rows = []
    for row, texts in zip(block.rows, table.rows, strict=True):
        links = anchors.get(texts, ())
        cells = (
            replace(cell, links=links if place >= 2 and texts[place] else ()) for place, cell in enumerate(row.cells)
        )
        rows.append(replace(row, cells=tuple(cells)))
    return replace(block, rows=tuple(rows))


def _line(record: Record, columns: Sequence[str]) -> tuple[str, ...]:
    """What a record says under the columns of a table; nothing if it is of another version."""
    import methods

    config = record["config"]
    try:
        task = TASKS[config["task"]].title if config["task"] in TASKS else config["task"]
        row = as_released.table_row(methods.lookup(config["method"]).traits.title, task, record["metrics"])
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(row.get(column, "") for column in columns)


def other_section(all_results: Sequence[Results], known: Collection[str]) -> Section | None:
    """Tables whose command has no part of its own on the page."""
    blocks: list[Block] = []
    for results in all_results:
        for table in results.tables.values():
            if command_of(table) not in known:
                blocks += _whole(results, table)
    return Section("other", "Other tables", OTHER_LEAD, tuple(blocks)) if blocks else None


def tables_of(all_results: Sequence[Results], name: str) -> Iterator[tuple[Results, Table]]:
    """The tables that one command wrote, in the order of the folders."""
    for results in all_results:
        for table in results.tables.values():
            if command_of(table) == name:
                yield results, table


def _profile(table: Table) -> str:
    return table.name.partition("-")[2].replace("-", " ").capitalize() or table.name


def _whole(results: Results, table: Table) -> list[Block]:
    blocks: list[Block] = [HeadingBlock(table.name, results.title), verbatim(table, results, f"{table.path.name}.")]
    blocks += [CommandBlock(table.command)] if table.command else []
    return blocks + ([ListBlock(table.remarks)] if table.remarks else [])
