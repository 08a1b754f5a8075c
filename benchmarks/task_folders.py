"""Tasks as the files of a data folder make them: a folder of the user's own, or a built-in task with partial files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.errors import UserError
from benchmarks.row_files import count_rows, read_rows, split_files, split_names
from benchmarks.runs import NAME
from benchmarks.tasks import OFFICIAL_ROWS, TASKS, Task

if TYPE_CHECKING:
    import datasets

DIVIDED_INTO = ("train", "test")  # the parts of the one split that there is


def task_folder(name: str, data_dir: Path) -> Path | None:
    """Where the files of a built-in task lie: `name` or glue/`name`; None if in neither."""
    return next((folder for folder in (data_dir / name, data_dir / "glue" / name) if folder.is_dir()), None)


def as_found(task: Task, data_dir: Path) -> Task:
    """`task` as its files are, and with a title that says so.

    Where there is no training file, but the task's rows have groups (articles), the evaluation file is divided by them
    into training and test rows, the same for every seed. Files with fewer rows than the official ones are a sample.
    """
    folder = task_folder(task.name, data_dir)
    if folder is None:
        return task
    splits = split_names(folder)
    there = next((split for split in task.eval_splits if split in splits), None)
    if task.group_column is not None and task.train_split not in splits and there is not None:
        train, test = DIVIDED_INTO
        title = f"{task.title} ({there} by {task.group_column})"
        return replace(task, title=title, divided=there, train_split=train, eval_splits=(test,))
    official = OFFICIAL_ROWS.get(task.name, (0, 0))
    found = [
        sum(count_rows(split_files(folder, name)) for name in names if name in splits)
        for names in ((task.train_split,), task.eval_splits)
    ]
    partial = any(rows < all_rows for rows, all_rows in zip(found, official, strict=True) if rows)
    return replace(task, title=f"{task.title} (sample)") if partial else task


def tasks_in(data_dir: Path, first: Iterable[str]) -> tuple[str, ...]:
    """The tasks that a data folder has files of: of the built-in ones those in `first`, in its order, then the user's.

    Raises:
        UserError: there is none.
    """
    built_in = [name for name in first if task_folder(name, data_dir)]
    folders = sorted(folder for folder in data_dir.iterdir() if folder.is_dir() and folder.name not in TASKS)
    found = (*built_in, *(folder.name for folder in folders if split_names(folder)))
    if not found:
        raise UserError(
            f"--data-dir {data_dir} has no folder of a task of this command; it takes <task>/<split>.parquet|tsv|csv|"
            "jsonl, and --tasks names others"
        )
    return found


_USER_TEXT_COLUMNS = (  # the first that a folder's files have is taken
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("sentence",),
    ("text",),
)
_USER_EVAL_SPLITS = ("validation", "dev", "test")


def task_from_folder(folder: Path) -> Task:
    """Describe a folder of the user's own: columns by name, labels and input length from the training rows.

    Whole or text labels are classes, labels with a fraction a regression; files with class names keep them.
    """
    if not NAME.fullmatch(folder.name):
        raise UserError(
            f"the folder {folder} cannot name a task: rename it with letters, digits, '_', '-', '+' and '.'"
        )
    splits = split_names(folder)
    eval_splits = [split for split in _USER_EVAL_SPLITS if split in splits]
    if "train" not in splits or not eval_splits:
        raise UserError(
            f"{folder} needs a train file and one of {', '.join(_USER_EVAL_SPLITS)} "
            f"(.parquet, .jsonl, .csv, .tsv); found: {', '.join(splits) or 'none'}"
        )
    rows = read_rows(split_files(folder, "train"))
    text_columns = next((names for names in _USER_TEXT_COLUMNS if set(names) <= set(rows.column_names)), None)
    if text_columns is None or "label" not in rows.column_names:
        raise UserError(
            f"{folder} needs a column 'label' and one of 'sentence', 'text', or a pair such as 'sentence1' with "
            f"'sentence2'; its train file has: {', '.join(rows.column_names)}"
        )
    names = _class_names(rows, folder)
    return Task(
        name=folder.name,
        title=folder.name,
        kind="classification" if names else "regression",
        group="user",
        text_columns=text_columns,
        num_labels=len(names) or 1,
        label_names=names,
        eval_splits=(eval_splits[0],),
        metric="accuracy" if names else "pearson",
        sequence_length=input_length(_words(row) for row in zip(*(rows[name] for name in text_columns), strict=True)),
        skim_weight=0.5,
        note=f"from the folder {folder.name}; input length estimated from its texts",
    )


def _class_names(rows: datasets.Dataset, folder: Path) -> tuple[str, ...]:
    """Class names in the order of their ids: the files' own, or else the sorted labels; none for a regression."""
    stored = getattr(rows.features["label"], "names", None)
    if stored:
        return tuple(stored)
    values = [value for value in rows.unique("label") if value is not None]
    if any(isinstance(value, float) for value in values):
        return ()
    if len(values) < 2:
        raise UserError(f"{folder} has one class only, {values}: there is nothing to learn")
    return tuple(str(value) for value in sorted(values))


def _words(row: Iterable[object]) -> int:
    return sum(len(str(text).split()) for text in row)


def input_length(words: Iterable[int]) -> int:
    """The smallest usual length that holds about 99 % of texts of so many words, at 1.5 tokens a word and 3 more."""
    counts = sorted(words)
    needed = 1.5 * counts[int(0.99 * (len(counts) - 1))] + 3
    return next((length for length in (64, 128, 256, 384) if needed <= length), 512)
