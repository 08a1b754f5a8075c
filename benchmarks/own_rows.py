"""A user's own file of rows as a task: columns found by name, labels as what they are, rows set aside to score on.

`own_texts` reads classes and values, `own_words` tags of words, `own_answers` answers in a context.

The rows are written as Parquet in the layout of `--data-dir`, below `skimbench_home()`/own and named by their content,
so that everything behind `benchmarks.data` reads them like any other task.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from benchmarks.data import DataSource, split_rows
from benchmarks.embedded import skimbench_home
from benchmarks.errors import UserError
from benchmarks.files import replacing, writing
from benchmarks.own_answers import AnswerRows, start_column
from benchmarks.own_texts import BOTH, TextRows
from benchmarks.own_words import WordRows
from benchmarks.plain import canonical_json
from benchmarks.row_files import SUFFIXES, read_rows, suffix_of
from benchmarks.tasks import Task

if TYPE_CHECKING:
    import datasets

PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "context"),
    ("question", "passage"),
    ("query", "document"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
SINGLES = (
    "sentence",
    "text",
    "review",
    "content",
    "comment",
    "message",
    "body",
    "document",
    "tweet",
)
WORDS = ("tokens", "words")
LABELS = ("label", "labels", "target", "class", "category", "sentiment", "rating", "stars", "score")
TAGS = ("ner_tags", "tags", "ner", "bio", "pos_tags", "pos")
ANSWERS = ("answers", "answer", "answer_text")
MIN_ROWS = 40  # to train on, to choose on and to score on
SCORE_SHARE, SCORE_ROWS, SPLIT_SEED = 0.2, 2_000, 42


class Reading(Protocol):
    """How rows of one kind are read."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the user's file, texts first, label last."""

    def standard(self, rows: datasets.Dataset, path: Path) -> datasets.Dataset:
        """The rows as they are written, each text and label checked."""

    def task(self, folder: Path, rows: datasets.Dataset) -> Task:
        """The task that `rows`, written below `folder`, are."""

    def group(self, rows: datasets.Dataset) -> str:
        """The column by which rows belong together."""

    def commonest(self, rows: datasets.Dataset) -> float | None:
        """Share of the commonest class; None where there are no classes."""


@dataclass(frozen=True)
class OwnTask:
    """Rows that are ready to train on.

    Attributes:
        columns: of the user's file, texts first, label last.
        train_rows, score_rows: how many there are.
        left_out: how many rows to train on are not, as their texts are in `validation`.
        commonest: share of the commonest class among the rows to score on; None where there are no classes.
    """

    task: Task
    source: DataSource
    columns: tuple[str, ...]
    train_rows: int
    score_rows: int
    left_out: int
    commonest: float | None


def own_task(
    path: Path,
    validation: Path | None = None,
    *,
    text_columns: tuple[str, ...] | None = None,
    label_column: str | None = None,
    values: bool = False,
    tags: bool = False,
    home: Path | None = None,
) -> OwnTask:
    """Read the rows of `path` and set some aside to score on, or take `validation` for that.

    Rows with the same text stay on one side: of pairs, with the same first text, or where few of those come again and
    again, with the same two; of questions, with the same context, or where there are few, with the same question, too.
    Rows with a text, or a pair, of `validation` are not trained on. Text or whole labels are classes, others a
    regression; lists belong to words.

    Args:
        values: whole labels are values to be predicted, too. tags: a label has a tag for every word of its text.
    Raises:
        UserError: a file that cannot be read, columns that cannot be told, too few rows, a text or label that cannot be
            used; it names the file and the row.
    """
    rows = _read(path)
    columns = _columns(rows, path, text_columns, label_column)
    reading = _reading(rows, columns, path, values=values, tags=tags, named=label_column is not None)
    train = reading.standard(rows, path)
    group, left_out = reading.group(train), 0
    if validation is None:
        if len(train) < MIN_ROWS:
            raise UserError(f"{path} has {len(train)} rows; at least {MIN_ROWS} are needed to train, choose and score")
        _check_groups(train, group, path, 3)
        share = min(SCORE_SHARE, SCORE_ROWS / len(train))
        train, score = split_rows(train, share, SPLIT_SEED, group)
    else:
        other = _read(validation)
        missing = [name for name in reading.columns if name not in other.column_names]
        if missing:
            raise UserError(f"{validation} lacks the column {missing[0]!r} that {path} has")
        score = reading.standard(other, validation)
        train, left_out = _without_copies(train, score, group, path, validation)
        _check_groups(train, group, path, 2)
    folder = _write(path, {"train": train, "test": score}, home or skimbench_home())
    return OwnTask(
        task=replace(reading.task(folder, train), title=path.stem, group_column=group),
        source=DataSource("data_dir", folder.parent),
        columns=columns,
        train_rows=len(train),
        score_rows=len(score),
        left_out=left_out,
        commonest=reading.commonest(score),
    )


def _without_copies(
    train: datasets.Dataset, score: datasets.Dataset, group: str, path: Path, validation: Path
) -> tuple[datasets.Dataset, int]:
    """The rows to train on whose texts are not scored on, and how many others there were.

    Raises:
        UserError: all of them are scored on.
    """
    texts = BOTH if BOTH in train.column_names else group
    scored = set(score[texts])
    kept = [place for place, text in enumerate(train[texts]) if text not in scored]
    if not kept:
        raise UserError(
            f"all {len(train)} rows of {path} are also in {validation}, so none is left to train on; without "
            "--validation some are set aside"
        )
    return train.select(kept), len(train) - len(kept)


def _check_groups(rows: datasets.Dataset, group: str, path: Path, least: int) -> None:
    """Refuse rows with too few different texts: copies of one stay together, and each part needs some."""
    different = len(set(rows[group]))
    if different < least:
        told = "texts" if different != 1 else "text"
        parts = "train, choose and score" if least == 3 else "train and choose"
        raise UserError(
            f"{path}: its {len(rows)} rows have {different} different {told}, and copies of one are never parted; at "
            f"least {least} are needed to {parts}"
        )


def _read(path: Path) -> datasets.Dataset:
    if not path.is_file():
        raise UserError(f"no file {path}; give a {', '.join(SUFFIXES)} file with texts and labels")
    if suffix_of(path) not in SUFFIXES:
        lines = "write one object a line, as .jsonl" if suffix_of(path) == ".json" else "convert it to one of them"
        raise UserError(f"{path} is none of {', '.join(SUFFIXES)}; {lines}")
    return read_rows([path])


def _columns(rows: datasets.Dataset, path: Path, texts: tuple[str, ...] | None, label: str | None) -> tuple[str, ...]:
    """Text columns and the label's, as the user says or as their names tell."""
    present = rows.column_names
    for name in (*(texts or ()), *((label,) if label else ())):
        if name not in present:
            raise UserError(f"{path} has no column {name!r}; it has: {', '.join(present)}")
    lower = {name.lower(): name for name in present}
    if label is None:
        label = next((lower[name] for name in (*LABELS, *TAGS, *ANSWERS) if name in lower), None)
    if label is None:
        raise UserError(f"{path}: none of its columns ({', '.join(present)}) is a label; name it with --label-column")
    if texts is None:
        words_first = (*WORDS, *SINGLES) if _is_list(rows, label) else (*SINGLES, *WORDS)
        known = next((names for names in (*PAIRS, *((x,) for x in words_first)) if set(names) <= set(lower)), None)
        others = [name for name in present if name != label and _dtype(rows, name) in ("string", "large_string")]
        texts = tuple(lower[name] for name in known) if known else tuple(others) if len(others) == 1 else None
    if texts is None:
        raise UserError(
            f"{path}: which of {', '.join(present)} is the text? name it, or both of a pair, by --text-columns"
        )
    if len(texts) > 2 or label in texts:
        raise UserError(f"{path}: one text column or two, and another for the label; got {', '.join((*texts, label))}")
    return (*texts, label)


def _dtype(rows: datasets.Dataset, name: str) -> str | None:
    """The type of a column; None for lists and the like."""
    return getattr(rows.features[name], "dtype", None)


def _is_list(rows: datasets.Dataset, name: str) -> bool:
    return hasattr(rows.features[name], "feature")


def _reading(
    rows: datasets.Dataset, columns: tuple[str, ...], path: Path, *, values: bool, tags: bool, named: bool
) -> Reading:
    """What the label column is: tags of words and answers tell by their type or name, unless the user `named` it."""
    label = columns[-1].lower()
    if tags or _is_list(rows, columns[-1]) or (label in TAGS and not named):
        return WordRows.of(rows, columns, path)
    if isinstance(rows.features[columns[-1]], dict) or (label in ANSWERS and (not named or start_column(rows))):
        return AnswerRows.of(rows, columns, path)
    return TextRows.of(rows, columns, path, values=values)


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
