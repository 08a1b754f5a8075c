"""What the report is made from: the records and tables that lie in results folders, read as they are."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.errors import UserError
from benchmarks.runs import CorruptRecord, Record, read_record

_COMMAND = re.compile(r"^Command: `(.+)`$", re.MULTILINE)
_LISTED = re.compile(r"^- (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Table:
    """One CSV file: every cell as the text that stands in the file.

    Attributes:
        path: of the file, for messages. command: that wrote it, from the Markdown file beside it, "" if it names none.
        remarks: the list items of that Markdown file.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    command: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    def dicts(
        self, columns: Sequence[str], *, numbers: Sequence[str] = (), needed: Sequence[str] = ()
    ) -> list[dict[str, str]]:
        """The rows by column.

        Args:
            columns: that have to be there. numbers: those that hold numbers or nothing. needed: and not nothing.
        Raises:
            UserError: the file has other columns, or another text in one of `numbers`.
        """
        advice = "rerun the command that writes it"
        if missing := [column for column in columns if column not in self.columns]:
            raise UserError(f"{self.path} lacks the columns {', '.join(missing)}; {advice}")
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        for number, row in enumerate(rows, 2):
            for name in numbers:
                if not (is_number(row[name]) or (row[name] == "" and name not in needed)):
                    raise UserError(f"{self.path}, row {number}: {name} is '{row[name]}', not a number; {advice}")
        return rows


def command_of(table: Table) -> str:
    """The command that wrote a table, from the file's name: what stands before the profile."""
    return table.name.partition("-")[0]


def is_number(text: str) -> bool:
    """Whether a text of a file is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


@dataclass(frozen=True)
class Results:
    """One results folder.

    Attributes:
        key: short, unique on the page, a part of its anchors. title: for people, "" where there is only one folder.
        records: by hash, failed ones too. unreadable: (place, reason) of files that are no records.
    """

    key: str
    title: str
    root: Path
    records: Mapping[str, Record]
    places: Mapping[str, str]
    tables: Mapping[str, Table]
    unreadable: tuple[tuple[str, str], ...] = ()
    commands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # that show a record, by its hash

    @property
    def is_empty(self) -> bool:
        """Whether nothing on a page could come from here."""
        return not (self.records or self.unreadable or self.tables or self.case_study.is_file())

    @property
    def case_study(self) -> Path:
        """The data of Table 5, where there are any."""
        return self.root / "tables" / "case_study.json"

    def anchor(self, run: str) -> str | None:
        """Where the record of a hash stands on the page; None if the folder has no such record."""
        return f"run-{self.key}-{run}" if run in self.records else None

    def anchors(self, runs: str) -> tuple[str, ...]:
        """Places of several records, named by their hashes with spaces between."""
        return tuple(anchor for run in runs.split() if (anchor := self.anchor(run)))


def read_results(root: Path, key: str, title: str) -> Results:
    """Read a folder; one that lacks `runs` or `tables` has none.

    Raises:
        UserError: a table is no CSV file.
    """
    records: dict[str, Record] = {}
    places: dict[str, str] = {}
    unreadable: list[tuple[str, str]] = []
    for path in sorted((root / "runs").rglob("*.json")):
        place = path.relative_to(root).as_posix()
        try:
            record = _checked(path)
        except CorruptRecord as error:
            unreadable.append((place, error.reason))
            continue
        records[record["config_hash"]], places[record["config_hash"]] = record, place
    tables = {path.stem: read_table(path) for path in sorted((root / "tables").glob("*.csv"))}
    return Results(key, title, root, records, places, tables, tuple(unreadable), _commands(tables.values()))


def _checked(path: Path) -> Record:
    """A record whose parts are of the types that the page reads; CorruptRecord otherwise."""
    record = read_record(path)
    parts = ("config", "metrics", "git", "environment")
    if wrong := [name for name in parts if not isinstance(record[name], dict)]:
        raise CorruptRecord(path, f"its {' and '.join(wrong)} is no JSON object")
    if not isinstance(record["wall_s"], int | float) or not isinstance(record["kind"], str):
        raise CorruptRecord(path, "has no valid kind or wall_s")
    return record


def read_table(path: Path) -> Table:
    """Read a CSV file and the command that its Markdown file names.

    Raises:
        UserError: it is not UTF-8, has no header, or a row of another width.
    """
    advice = "rerun the command that writes it, or remove the file"
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = [tuple(row) for row in csv.reader(stream, strict=True)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a readable CSV file ({error}); {advice}") from error
    if not rows:
        raise UserError(f"{path} is empty; {advice}")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(rows[0]):
            raise UserError(f"{path}, row {number}: {len(row)} fields under {len(rows[0])} columns; {advice}")
    text = _text_beside(path)
    found = _COMMAND.search(text)
    return Table(path, rows[0], tuple(rows[1:]), found[1] if found else "", tuple(_LISTED.findall(text)))


def _text_beside(path: Path) -> str:
    try:
        return path.with_suffix(".md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _commands(tables: Iterable[Table]) -> dict[str, tuple[str, ...]]:
    """The commands of the tables that name a record, by the record's hash."""
    found: dict[str, list[str]] = {}
    for table in tables:
        if "records" not in table.columns or not table.command or command_of(table) == "strategy":
            continue  # `strategy` draws what others measured
        place = table.columns.index("records")
        for run in dict.fromkeys(run for row in table.rows for run in row[place].split()):
            found.setdefault(run, []).append(table.command)
    return {run: tuple(dict.fromkeys(commands)) for run, commands in found.items()}
