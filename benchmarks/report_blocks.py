"""The pieces of the report's page: sections of tables, figures, lists and folded parts; templates draw them.

Texts come from records and tables that anybody may have written: every one goes through jinja2's escaping.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, TypeAlias

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from benchmarks.report_data import Results, Table, is_number

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Part:
    """A piece of a cell: the text that is shown and, where that rounds it, the text of the file."""

    text: str
    value: str | None = None
    css: str = ""


@dataclass(frozen=True)
class Cell:
    """One cell: parts with spaces between, and the places of the records behind them; `drawing` stands before these."""

    parts: tuple[Part, ...]
    links: tuple[str, ...] = ()
    drawing: Markup | None = None
    css: str = ""


@dataclass(frozen=True)
class Row:
    """Cells of a row; `starts` draws a line above it."""

    cells: tuple[Cell, ...]
    starts: bool = False


@dataclass(frozen=True, kw_only=True)
class TableBlock:
    """A table.

    Attributes:
        file: that its cells come from, below the results folder. headings: number of leading columns that name a row.
        numeric: the columns that are set flush right.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    file: str = ""
    headings: int = 1
    numeric: frozenset[int] = frozenset()


@dataclass(frozen=True)
class ListBlock:
    """Sentences, one below the other."""

    kind: ClassVar[str] = "list"
    lines: tuple[str, ...]


@dataclass(frozen=True)
class TextBlock:
    """One paragraph; `label` stands before it in a lighter colour."""

    kind: ClassVar[str] = "text"
    text: str
    label: str = ""


@dataclass(frozen=True)
class CommandBlock:
    """What to type to make this again."""

    kind: ClassVar[str] = "command"
    command: str


@dataclass(frozen=True)
class HeadingBlock:
    """A heading inside a section; `tag` stands behind it as a small label."""

    kind: ClassVar[str] = "heading"
    text: str
    tag: str = ""


@dataclass(frozen=True)
class MarkupBlock:
    """HTML that is escaped already."""

    kind: ClassVar[str] = "markup"
    html: Markup


@dataclass(frozen=True)
class RecordBlock:
    """What it takes to make a run again: facts, and its configuration by field."""

    kind: ClassVar[str] = "record"
    facts: tuple[tuple[str, str], ...]
    config: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class FoldBlock:
    """Blocks behind a line that opens them."""

    kind: ClassVar[str] = "fold"
    summary: str
    blocks: tuple[Block, ...]
    anchor: str = ""


Block: TypeAlias = (
    TableBlock | ListBlock | TextBlock | CommandBlock | HeadingBlock | MarkupBlock | RecordBlock | FoldBlock
)


@dataclass(frozen=True)
class Section:
    """A part of the page with its own line in the list of contents."""

    anchor: str
    title: str
    lead: str  # what to read in it
    blocks: tuple[Block, ...]


def plain(text: str, links: Sequence[str] = (), css: str = "") -> Cell:
    """A cell of one text."""
    return Cell((Part(text),), tuple(links), css=css)


def number(value: str, form: str, links: Sequence[str] = (), css: str = "") -> Cell:
    """A cell of one rounded number of a file; empty where the file has none."""
    return Cell((rounded(value, form),) if value else (), tuple(links), css=css)


def rounded(value: str, form: str, css: str = "") -> Part:
    """A number of a file as a format shows it ("{:.1f}")."""
    return Part(form.format(float(value)), value, css)


def verbatim(table: Table, results: Results, caption: str, headings: int = 1) -> TableBlock:
    """A file as it is; what stands under "records" leads to them."""

    def cell(column: str, text: str) -> Cell:
        if column != "records":
            return plain(text)
        return Cell(tuple(Part(run) for run in text.split()), results.anchors(text))

    numeric = frozenset(
        place
        for place in range(len(table.columns))
        if (texts := [row[place] for row in table.rows if row[place]]) and all(map(is_number, texts))
    )
    rows = tuple(Row(tuple(map(cell, table.columns, row))) for row in table.rows)
    return TableBlock(
        caption=caption,
        columns=table.columns,
        rows=rows,
        file=f"{results.key}/tables/{table.path.name}",
        headings=headings,
        numeric=numeric,
    )


# Drawing --------------------------------------------------------------------------------------------------------------


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


def draw(title: str, sections: Sequence[Section], *, introduction: Sequence[str], style: str = "") -> str:
    """The whole page.

    Args:
        introduction: sentences under the title. style: more CSS.
    """
    sheet = (TEMPLATES / "report.css").read_text(encoding="utf-8") + style
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=title,
            sections=sections,
            introduction=introduction,
            style=Markup(sheet),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )
