"""A user's own file of rows as a task: columns found by name, labels as classes or values, rows set aside to score on.

The rows are written as Parquet in the layout of `--data-dir`, below `skimbench_home()`/own and named by their content,
so that everything behind `benchmarks.data` reads them like any other task.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.data import DataSource, split_rows
from benchmarks.embedded import skimbench_home
from benchmarks.errors import UserError
from benchmarks.files import replacing, writing
from benchmarks.plain import canonical_json
from benchmarks.row_checks import check_numbers, check_texts
from benchmarks.row_files import SUFFIXES, numbers, read_rows
from benchmarks.task_folders import task_from_folder
from benchmarks.tasks import Task

if TYPE_CHECKING:
    import datasets

PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
    ("query", "document"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
SINGLES = ("sentence", "text", "review", "content", "comment", "message", "body", "document", "tweet")
LABELS = ("label", "labels", "target", "class", "category", "sentiment", "rating", "stars", "score")
MIN_ROWS = 40  # to train on, to choose on and to score on
MAX_CLASSES = 200
SCORE_SHARE, SCORE_ROWS, SPLIT_SEED = 0.2, 2_000, 42


@dataclass(frozen=True)
class OwnTask:
    """Rows that are ready to train on.

    Attributes:
        columns: of the user's file, texts first, label last.
        train_rows, score_rows: how many there are.
        commonest: share of the commonest class among the rows to score on; None for a regression.
    """

    task: Task
    source: DataSource
    columns: tuple[str, ...]
    train_rows: int
    score_rows: int
    commonest: float | None


def own_task(
    path: Path,
    validation: Path | None = None,
    *,
    text_columns: tuple[str, ...] | None = None,
    label_column: str | None = None,
    values: bool = False,
    home: Path | None = None,
) -> OwnTask:
    """Read the rows of `path` and set some aside to score on, or take `validation` for that.

    Rows with the same (first) text stay on one side. Text or whole labels are classes, others a regression.

    Args:
        values: whole labels are values to be predicted, too.
    Raises:
        UserError: a file that cannot be read, columns that cannot be told, too few rows, a text or label that cannot be
            used; it names the file and the row.
    """
    rows = _read(path)
    columns = _columns(rows, path, text_columns, label_column)
    names = () if values else _class_names(rows, columns[-1], path)
    train = _standard(rows, columns, names, path)
    if validation is None:
        if len(train) < MIN_ROWS:
            raise UserError(f"{path} has {len(train)} rows; at least {MIN_ROWS} are needed to train, choose and score")
        share = min(SCORE_SHARE, SCORE_ROWS / len(train))
        train, score = split_rows(train, share, SPLIT_SEED, _group(train))
    else:
        other = _read(validation)
        missing = [name for name in columns if name not in other.column_names]
        if missing:
            raise UserError(f"{validation} lacks the column {missing[0]!r} that {path} has")
        score = _standard(other, columns, names, validation)
    folder = _write(path, {"train": train, "test": score}, home or skimbench_home())
    counts = Counter(score["label"]) if names else None
    return OwnTask(
        task=replace(task_from_folder(folder), title=path.stem, group_column=_group(train)),
        source=DataSource("data_dir", folder.parent),
        columns=columns,
        train_rows=len(train),
        score_rows=len(score),
        commonest=None if counts is None else max(counts.values()) / len(score),
    )


def _read(path: Path) -> datasets.Dataset:
    if not path.is_file():
        raise UserError(f"no file {path}; give a {', '.join(SUFFIXES)} file with texts and labels")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is none of {', '.join(SUFFIXES)}; convert it to one of them")
    return read_rows([path])


def _columns(rows: datasets.Dataset, path: Path, texts: tuple[str, ...] | None, label: str | None) -> tuple[str, ...]:
    """Text columns and the label's, as the user says or as their names tell."""
    present = rows.column_names
    for name in (*(texts or ()), *((label,) if label else ())):
        if name not in present:
            raise UserError(f"{path} has no column {name!r}; it has: {', '.join(present)}")
    lower = {name.lower(): name for name in present}
    if label is None:
        label = next((lower[name] for name in LABELS if name in lower), None)
    if label is None:
        raise UserError(f"{path}: none of its columns ({', '.join(present)}) is a label; name it with --label-column")
    if texts is None:
        known = next((names for names in (*PAIRS, *((name,) for name in SINGLES)) if set(names) <= set(lower)), None)
        others = [name for name in present if name != label and rows.features[name].dtype in ("string", "large_string")]
        texts = tuple(lower[name] for name in known) if known else tuple(others) if len(others) == 1 else None
    if texts is None:
        raise UserError(
            f"{path}: which of {', '.join(present)} is the text? name it, or both of a pair, by --text-columns"
        )
    if len(texts) > 2 or label in texts:
        raise UserError(f"{path}: one text column or two, and another for the label; got {', '.join((*texts, label))}")
    return (*texts, label)


def _labels(rows: datasets.Dataset, column: str) -> list[Any]:
    """Numbers where every label is one, whatever the column's name; class names where the file has them."""
    feature, values = rows.features[column], list(rows[column])
    if names := getattr(feature, "names", None):
        return [None if value is None or value < 0 else names[value] for value in values]
    if any(isinstance(value, bool) for value in values):
        return [None if value is None else str(value).lower() for value in values]
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
            if place is None:
                said = "is empty" if one is None else f"{one!r} is none of {', '.join(names)}"
                raise UserError(f"{path}, row {number}: the label in {label!r} {said}")
        feature: Any = datasets.ClassLabel(names=list(names))
        values: list[Any] = ids
    else:
        feature, values = datasets.Value("float64"), labels
    features = {name: datasets.Value("string") for name in known} | {"label": feature}
    data = {name: list(rows[column]) for name, column in zip(known, texts, strict=True)} | {"label": values}
    if not names:
        check_numbers(datasets.Dataset.from_dict({label: values}), told, str(path))
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


def _name(label: Any) -> str:
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def _group(rows: datasets.Dataset) -> str | None:
    """The text by which rows belong together; None where few texts are asked about again and again."""
    first = rows.column_names[0]
    return first if len(set(rows[first])) > len(rows) // 2 else None


def _write(path: Path, parts: dict[str, datasets.Dataset], home: Path) -> Path:
    """Write the parts as Parquet below `home`, in a folder that their content names; returns it."""
    import pyarrow.parquet as pq

    digest = hashlib.sha256()
    for part in parts.values():
        digest.update(canonical_json([list(part[name]) for name in part.column_names]).encode())
    name = "own_" + (re.sub(r"[^A-Za-z0-9_.-]+", "_", path.stem).strip("_") or "rows")
    folder = home / "own" / digest.hexdigest()[:12] / name
    for split, part in parts.items():
        target = folder / f"{split}.parquet"
        with writing(target):
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(target) as temporary:
                pq.write_table(part.with_format("arrow")[:].cast(part.features.arrow_schema), temporary)
    return folder
