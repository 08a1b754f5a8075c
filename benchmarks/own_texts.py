"""A user's rows of a text, or a pair, with a class or a value each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.errors import UserError
from benchmarks.row_checks import check_numbers, check_texts, empty_label
from benchmarks.row_files import numbers
from benchmarks.task_folders import task_from_folder
from benchmarks.tasks import Task

if TYPE_CHECKING:
    import datasets

MAX_CLASSES = 200
BOTH = "both"  # column of a pair's texts in one: what tells its copies


def in_one(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """The texts of each pair as one text."""
    return [json.dumps(texts) for texts in zip(first, second, strict=True)]


@dataclass(frozen=True)
class TextRows:
    """How rows with one label each are read; `names` of the class ids, none for a regression."""

    columns: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, rows: datasets.Dataset, columns: tuple[str, ...], path: Path, *, values: bool) -> TextRows:
        """As the labels tell; with `values`, whole numbers are no classes.

        Raises:
            UserError: a single class, or too many.
        """
        return cls(columns, () if values else _class_names(rows, columns[-1], path))

    def standard(self, rows: datasets.Dataset, path: Path) -> datasets.Dataset:
        """The rows in hub columns, their labels as class ids or numbers."""
        return _standard(rows, self.columns, self.names, path)

    def task(self, folder: Path, rows: datasets.Dataset) -> Task:
        """The task that its folder makes."""
        return replace(task_from_folder(folder), group_column=self.group(rows))

    def group(self, rows: datasets.Dataset) -> str:
        """The text by which rows belong together; of a pair both, where few first texts come again and again."""
        first = rows.column_names[0]
        single = BOTH not in rows.column_names
        return first if single or len(set(rows[first])) > len(rows) // 2 else BOTH

    def commonest(self, rows: datasets.Dataset) -> float | None:
        """Share of the commonest class."""
        return max(Counter(rows["label"]).values()) / len(rows) if self.names else None


def _labels(rows: datasets.Dataset, column: str) -> list[Any]:
    """Numbers where every label is one, whatever the column's name; class names where the file has them.

    Truth values are called false and true, whatever the format of the file or the case of its letters.
    """
    feature, values = rows.features[column], list(rows[column])
    if names := getattr(feature, "names", None):
        return [None if value is None or value < 0 else names[value] for value in values]
    if any(isinstance(value, bool) for value in values):
        return [None if value is None else str(value).lower() for value in values]
    texts = [value for value in values if value is not None]
    if texts and all(isinstance(value, str) and value.strip().lower() in ("", "false", "true") for value in texts):
        return [value.strip().lower() or None if value else None for value in values]
    if values and all(isinstance(value, str) for value in values):
        values = numbers([value.strip() for value in values])
    return values


def _class_names(rows: datasets.Dataset, column: str, path: Path) -> tuple[str, ...]:
    """Class names in the order of their ids: sorted; none for a regression."""
    if stored := getattr(rows.features[column], "names", None):
        return tuple(stored)
    labels = [label for label in _labels(rows, column) if label is not None]
    if any(isinstance(label, float) and not label.is_integer() for label in labels):
        return ()
    distinct = sorted({int(label) if isinstance(label, float) else label for label in labels})
    if len(distinct) < 2:
        raise UserError(f"{path}: column {column!r} has one class only, {distinct}: there is nothing to learn")
    if len(distinct) > min(MAX_CLASSES, len(labels) // 2):
        raise UserError(
            f"{path}: column {column!r} has {len(distinct)} different labels in {len(labels)} rows, too many for "
            "classes; predict them as values with --regression, or name another column with --label-column"
        )
    return tuple(str(label) for label in distinct)


def _standard(rows: datasets.Dataset, columns: tuple[str, ...], names: tuple[str, ...], path: Path) -> datasets.Dataset:
    """The rows in hub columns, their labels as class ids or numbers, each text and label checked."""
    import datasets

    *texts, label = columns
    known = ("sentence",) if len(texts) == 1 else ("sentence1", "sentence2")
    told = Task(
        name=path.stem,
        title=path.stem,
        kind="classification" if names else "regression",
        group="user",
        text_columns=tuple(texts),
        label_column=label,
        num_labels=len(names) or 1,
        metric="accuracy",
        sequence_length=0,
        skim_weight=0.0,
    )
    check_texts(rows, told, str(path), official=False)
    labels = _labels(rows, label)
    if names:
        ids = [names.index(_name(one)) if _name(one) in names else None for one in labels]
        for number, (place, one) in enumerate(zip(ids, labels, strict=True), 1):
            if one is None:
                raise UserError(empty_label(str(path), number, label))
            if place is None:
                raise UserError(f"{path}, row {number}: the label in {label!r} {one!r} is none of {', '.join(names)}")
        feature: Any = datasets.ClassLabel(names=list(names))
        values: list[Any] = ids
    else:
        feature, values = datasets.Value("float64"), [float(x) if isinstance(x, int) else x for x in labels]
    features: dict[str, Any] = {name: datasets.Value("string") for name in known} | {"label": feature}
    data = {name: list(rows[column]) for name, column in zip(known, texts, strict=True)} | {"label": values}
    if len(texts) == 2:
        features[BOTH], data[BOTH] = datasets.Value("string"), in_one(*(data[name] for name in known))
    if not names:
        check_numbers(datasets.Dataset.from_dict({label: values}), told, str(path))
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


def _name(label: Any) -> str:
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)
