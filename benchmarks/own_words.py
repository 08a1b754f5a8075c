"""A user's rows whose words have labels (NER, parts of speech): two columns, with a word and a tag for each place."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.errors import UserError
from benchmarks.tags import KIND, has_entities
from benchmarks.task_folders import input_length
from benchmarks.tasks import Task

if TYPE_CHECKING:
    import datasets

WORDS, TAGS, TEXT = "words", "tags", "text"  # columns as they are written; the text tells copies


@dataclass(frozen=True)
class WordRows:
    """How such rows are read.

    Attributes:
        columns: of the words and of the tags. names: of the class ids.
    """

    columns: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, rows: datasets.Dataset, columns: tuple[str, ...], path: Path) -> WordRows:
        """Tags in the order of their ids: the file's own, or else sorted, with "O" first.

        Raises:
            UserError: two texts, unequal numbers of words and tags, or a single tag.
        """
        if len(columns) != 2:
            raise UserError(f"{path}: tags belong to the words of one column, got {', '.join(columns[:-1])}")
        names = _stored_names(rows, columns[1])
        if not names:
            names = tuple(sorted({tag for tags in _cells(rows, columns, path)[1] for tag in tags}, key=_order))
        if len(names) < 2:
            raise UserError(f"{path}: column {columns[1]!r} has one tag only, {list(names)}: there is nothing to learn")
        return cls(columns, names)

    def standard(self, rows: datasets.Dataset, path: Path) -> datasets.Dataset:
        """The rows as they are written, each word and tag checked."""
        import datasets

        words, tags = _cells(rows, self.columns, path)
        for number, row in enumerate(tags, 1):
            for tag in row:
                if tag not in self.names:
                    raise UserError(
                        f"{path}, row {number}: the tag {tag!r} in {self.columns[1]!r} is none of "
                        f"{', '.join(self.names)}"
                    )
        text = datasets.Value("string")
        features = datasets.Features(
            {WORDS: datasets.List(text), TAGS: datasets.List(datasets.ClassLabel(names=list(self.names))), TEXT: text}
        )
        ids = [[self.names.index(tag) for tag in row] for row in tags]
        data = {WORDS: words, TAGS: ids, TEXT: [" ".join(row) for row in words]}
        return datasets.Dataset.from_dict(data, features=features)

    def task(self, folder: Path, rows: datasets.Dataset) -> Task:
        """The task that `rows`, written below `folder`, are."""
        return Task(
            name=folder.name,
            title=folder.name,
            kind=KIND,
            group="user",
            text_columns=(WORDS,),
            label_column=TAGS,
            num_labels=len(self.names),
            label_names=self.names,
            eval_splits=("test",),
            metric="entity_f1" if has_entities(self.names) else "accuracy",
            sequence_length=input_length(map(len, rows[WORDS])),
            skim_weight=0.5,
            group_column=self.group(rows),
        )

    def group(self, rows: datasets.Dataset) -> str:
        """The column by which rows stay together."""
        return TEXT

    def commonest(self, rows: datasets.Dataset) -> float | None:
        """Share of the commonest tag among the words; None for entities, where it finds none."""
        counts = Counter(tag for tags in rows[TAGS] for tag in tags)
        return None if has_entities(self.names) else max(counts.values()) / counts.total()


def _cells(rows: datasets.Dataset, columns: tuple[str, ...], path: Path) -> tuple[list[list[str]], list[list[str]]]:
    """Words and tags of every row; cells of text hold them with spaces between."""
    stored = _stored_names(rows, columns[1])
    cells: tuple[list[list[str]], list[list[str]]] = [], []
    for number, (words, tags) in enumerate(zip(*(rows[column] for column in columns), strict=True), 1):
        where = f"{path}, row {number}"
        for column, cell, kept in zip(columns, (words, tags), cells, strict=True):
            if cell is not None and not isinstance(cell, str | list):
                flag = "tags with --label-column" if column == columns[1] else "words with --text-columns"
                raise UserError(
                    f"{where}: {column!r} holds {cell!r}, neither a list nor words with spaces between; name the "
                    f"column of {flag}"
                )
            parts = cell.split() if isinstance(cell, str) else list(cell or ())
            if not parts:
                raise UserError(f"{where}: {column!r} is empty ({cell!r}); remove the row or fill it")
            kept.append([_name(part, stored if column == columns[1] else (), where, column) for part in parts])
        counts = len(cells[0][-1]), len(cells[1][-1])
        if counts[0] != counts[1]:
            raise UserError(
                f"{where}: {counts[0]} words in {columns[0]!r} but {counts[1]} tags in {columns[1]!r}; if that is no "
                "column of tags, name the right one with --label-column"
            )
    return cells


def _name(part: Any, stored: tuple[str, ...], where: str, column: str) -> str:
    """A word or a tag as text; ids under the file's own names become these."""
    if stored and isinstance(part, int):
        if not 0 <= part < len(stored):
            raise UserError(f"{where}: the tag {part} in {column!r} is none of the {len(stored)} that the file names")
        return stored[part]
    text = "" if part is None or isinstance(part, list | dict) else str(part)
    if not text.strip():
        raise UserError(f"{where}: {column!r} holds {part!r}; each entry must be a word or a tag")
    return text


def _stored_names(rows: datasets.Dataset, column: str) -> tuple[str, ...]:
    """Names of tags that a Parquet file carries."""
    return tuple(getattr(getattr(rows.features[column], "feature", None), "names", None) or ())


def _order(tag: str) -> tuple[bool, str]:
    return tag != "O", tag
