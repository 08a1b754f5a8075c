"""Checks on the rows of one split: every text is text, every label is a class or a finite number.

`origin` is what a message calls the rows (their file, or hub id and split); rows count from 1, headers apart.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.errors import UserError
from benchmarks.tasks import Task

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)


def check_texts(rows: datasets.Dataset | Mapping[str, list[Any]], task: Task, origin: str, *, official: bool) -> None:
    """Every text is a string with something in it; empty texts of official rows are kept and logged."""
    empty = 0
    for column in task.text_columns:
        for number, text in enumerate(rows[column][:], 1):
            if not isinstance(text, str):
                raise UserError(f"{origin}, row {number}: {column!r} must be text, got {text!r}")
            if text.strip():
                continue
            if not (official or task.empty_text_ok):
                raise UserError(f"{origin}, row {number}: {column!r} is empty ({text!r}); remove the row or fill it")
            empty += 1
    if empty:
        logger.info("%s: %d empty texts kept, as in the official rows", origin, empty)


def with_class_ids(rows: datasets.Dataset, task: Task, origin: str) -> datasets.Dataset:
    """Replace labels by class ids in the task's order; names, where the rows have them, decide over numbers."""
    import datasets

    stored = getattr(rows.features[task.label_column], "names", None) or ()
    labels = rows[task.label_column][:]
    ids = {label: _class_id(label, task, stored) for label in set(labels)}
    for number, label in enumerate(labels, 1):
        if label is None:
            raise UserError(empty_label(origin, number, task.label_column))
        if ids[label] is None:
            known = f"0 to {task.num_labels - 1}" + (f" or {', '.join(task.label_names)}" if task.label_names else "")
            hidden = "; -1 marks hidden labels, use a split that has them" if label == -1 else ""
            raise UserError(f"{origin}, row {number}: label {label!r} is not a class of {task.name} ({known}){hidden}")
    values = [ids[label] for label in labels]
    if values == labels:
        return rows
    feature = datasets.ClassLabel(names=list(task.label_names)) if task.label_names else datasets.Value("int64")
    return rows.remove_columns(task.label_column).add_column(task.label_column, values, feature=feature)


def empty_label(origin: str, number: int, column: str) -> str:
    """What to say of a row without a label."""
    return f"{origin}, row {number}: the label in {column!r} is empty; remove the row or fill it"


def _class_id(label: Any, task: Task, stored: Sequence[str]) -> int | None:
    """The task's id of one stored label (a name, an id, or an id under the file's own names); None if it has none."""
    if isinstance(label, int) and 0 <= label < len(stored):
        label = stored[label]
    if str(label) in task.label_names:
        return task.label_names.index(str(label))
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    numeric_names = any(name.isdecimal() for name in task.label_names)  # then a number is a name, never an id
    return int(label) if isinstance(label, int) and 0 <= label < task.num_labels and not numeric_names else None


def check_tags(rows: datasets.Dataset, task: Task, origin: str) -> None:
    """Every row has words, each with something in it, and as many class ids."""
    words_column, tags_column = task.text_columns[0], task.label_column
    for number, (words, tags) in enumerate(zip(rows[words_column], rows[tags_column], strict=True), 1):
        where = f"{origin}, row {number}"
        for column, values in ((words_column, words), (tags_column, tags)):
            if not isinstance(values, list) or not values:
                raise UserError(f"{where}: {column!r} must be a list with one entry per word, got {values!r}")
        if len(words) != len(tags):
            raise UserError(f"{where}: {len(words)} words in {words_column!r} but {len(tags)} tags in {tags_column!r}")
        for word in words:
            if not isinstance(word, str) or not word.strip():
                raise UserError(f"{where}: a word in {words_column!r} is {word!r}; remove it with its tag")
        for tag in tags:
            if not isinstance(tag, int) or not 0 <= tag < task.num_labels:
                raise UserError(
                    f"{where}: tag {tag!r} in {tags_column!r} is no class id from 0 to {task.num_labels - 1}"
                )


def check_numbers(rows: datasets.Dataset, task: Task, origin: str) -> None:
    """Every label of a regression is a finite number."""
    for number, label in enumerate(rows[task.label_column][:], 1):
        if label is None:
            raise UserError(empty_label(origin, number, task.label_column))
        if not isinstance(label, int | float) or not math.isfinite(label):
            raise UserError(f"{origin}, row {number}: label {label!r} of {task.name} must be a finite number")


def check_answers(rows: datasets.Dataset | Mapping[str, list[Any]], task: Task, origin: str, *, official: bool) -> None:
    """Answers are texts with their places in the context, and stand there; official rows may be a little off."""
    context_column = task.text_columns[-1]
    for number, (answers, context) in enumerate(zip(rows[task.label_column], rows[context_column], strict=True), 1):
        where = f"{origin}, row {number}: {task.label_column!r}"
        texts, starts = (
            (answers.get(name) for name in ("text", "answer_start")) if isinstance(answers, dict) else (0, 0)
        )
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise UserError(f"{where} must have equally long lists 'text' and 'answer_start', got {answers!r}")
        for text, start in zip(texts, starts, strict=True):
            if not isinstance(text, str) or not isinstance(start, int) or not text.strip():
                raise UserError(
                    f"{where} has {text!r} at {start!r}; an answer is a text and its first character's place"
                )
            if not official and (start < 0 or context[start : start + len(text)] != text):
                raise UserError(f"{where} has {text!r} at {start}, but {context_column!r} does not have it there")
