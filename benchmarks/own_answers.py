"""A user's questions with their answers in a context: SQuAD's layout, or a column each for answer and place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.errors import UserError
from benchmarks.own_texts import BOTH, in_one
from benchmarks.row_checks import check_answers, check_texts
from benchmarks.task_folders import input_length
from benchmarks.tasks import Task

if TYPE_CHECKING:
    import datasets

QUESTION, CONTEXT, ANSWERS = "question", "context", "answers"  # columns as they are written
STARTS = ("answer_start", "start")  # columns with the place of an answer's first character
LONGEST = 384  # tokens of a window; longer contexts are read in several
MIN_CONTEXTS = 10  # different ones, to set whole contexts aside


@dataclass(frozen=True)
class AnswerRows:
    """How such rows are read.

    Attributes:
        columns: of the question, the context and the answer. start: of the answer's place, if there is one.
    """

    columns: tuple[str, ...]
    start: str | None

    @classmethod
    def of(cls, rows: datasets.Dataset, columns: tuple[str, ...], path: Path) -> AnswerRows:
        """As the columns tell.

        Raises:
            UserError: the texts are not a question and a context.
        """
        if len(columns) != 3:
            raise UserError(
                f"{path}: answers need a question and a context, and {columns[0]!r} is one text; name both with "
                "--text-columns"
            )
        return cls(columns, start_column(rows))

    def standard(self, rows: datasets.Dataset, path: Path) -> datasets.Dataset:
        """The rows as they are written, each answer found in its context."""
        import datasets

        if self.start is not None and self.start not in rows.column_names:
            raise UserError(f"{path} lacks the column {self.start!r} that the rows to train on have")
        question, context, answer = (list(rows[column]) for column in self.columns)
        starts = list(rows[self.start]) if self.start else [None] * len(rows)
        text = datasets.Value("string")
        features = datasets.Features(
            {
                QUESTION: text,
                CONTEXT: text,
                ANSWERS: {"text": datasets.List(text), "answer_start": datasets.List(datasets.Value("int64"))},
                BOTH: text,
            }
        )
        told = self._task(path.stem, 0, None)
        check_texts({QUESTION: question, CONTEXT: context}, told, str(path), official=False)
        found = [
            one if isinstance(one, dict) else self._found(one, start, where, f"{path}, row {number}")
            for number, (one, start, where) in enumerate(zip(answer, starts, context, strict=True), 1)
        ]
        data = {QUESTION: question, CONTEXT: context, ANSWERS: found}
        check_answers(data, told, str(path), official=False)
        return datasets.Dataset.from_dict(data | {BOTH: in_one(question, context)}, features=features)

    def _found(self, answer: Any, start: Any, context: str, where: str) -> dict[str, list[Any]]:
        """An answer as SQuAD has it; where no place is told, its first one counts."""
        column = self.columns[-1]
        if answer is None or (isinstance(answer, str) and not answer.strip()):
            return {"text": [], "answer_start": []}
        if not isinstance(answer, str):
            raise UserError(f"{where}: the answer in {column!r} must be text, empty if there is none, got {answer!r}")
        if self.start is None:
            place = context.find(answer)
            if place < 0:
                raise UserError(
                    f"{where}: the answer {answer!r} does not stand in {self.columns[1]!r}; if answers are classes, "
                    f"say --label-column {column}"
                )
            return {"text": [answer], "answer_start": [place]}
        try:
            return {"text": [answer], "answer_start": [int(start)]}
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{where}: {self.start!r} must be the place of the answer's first character, got {start!r}"
            ) from error

    def task(self, folder: Path, rows: datasets.Dataset) -> Task:
        """The task that `rows`, written below `folder`, are."""
        words = (len(q.split()) + len(c.split()) for q, c in zip(rows[QUESTION], rows[CONTEXT], strict=True))
        return self._task(folder.name, min(LONGEST, input_length(words)), self.group(rows))

    def _task(self, name: str, length: int, group: str | None) -> Task:
        return Task(
            name=name,
            title=name,
            kind="span_qa",
            group="user",
            text_columns=(QUESTION, CONTEXT),
            label_column=ANSWERS,
            num_labels=2,
            eval_splits=("test",),
            metric="squad_f1",
            sequence_length=length,
            stride=length // 3,
            skim_weight=0.5,
            group_column=group,
        )

    def group(self, rows: datasets.Dataset) -> str:
        """Questions on one context stay together, where there are enough contexts; else copies of a question do."""
        return CONTEXT if len(set(rows[CONTEXT])) >= MIN_CONTEXTS else BOTH

    def commonest(self, rows: datasets.Dataset) -> float | None:
        """There are no classes."""
        return None


def start_column(rows: datasets.Dataset) -> str | None:
    """The column that tells where answers begin, if there is one."""
    return next((name for name in rows.column_names if name.lower() in STARTS), None)
