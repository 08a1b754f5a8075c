"""What a finding of the audit is, and how findings read the papers' numbers.

A finding sets a printed claim beside a computation. Whether the claim holds, and the sentence that says so, come from
the numbers alone; a finding that rests on numbers which were written down without the paper at hand has no verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.errors import UserError
from benchmarks.reported import Reported, lookup
from benchmarks.tasks import GLUE, TASKS

Value = str | int | float | None
Row = tuple[Value, ...]

UNCHECKED = frozenset({"from_memory", "second_hand"})  # flags of numbers that decide nothing
VERDICTS = ("holds", "does not hold", "unconfirmed", "information")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One claim and its arithmetic.

    Attributes:
        id: short name, unique. paper: as in results/reported, or "several".
        claim: what is printed, or how it would be read. computation: how the numbers come about.
        columns, numbers: the figures, one row per task or case.
        holds: whether the numbers bear the claim out; None where there is no claim to check.
        summary: the plain sentence, made from the numbers.
        flags: how the printed numbers that decide were come by, see `benchmarks.reported.FLAGS`.
    """

    id: str
    paper: str
    claim: str
    computation: str
    columns: tuple[str, ...]
    numbers: tuple[Row, ...]
    holds: bool | None
    summary: str
    flags: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if wrong := [row for row in self.numbers if len(row) != len(self.columns)]:
            raise ValueError(f"{self.id} has {len(self.columns)} columns and the row {wrong[0]}")

    @property
    def verdict(self) -> str:
        """One of VERDICTS."""
        if self.holds is None:
            return "information"
        if self.flags & UNCHECKED:
            return "unconfirmed"
        return "holds" if self.holds else "does not hold"

    @property
    def sentence(self) -> str:
        """The summary, and what an unconfirmed one rests on."""
        if self.verdict != "unconfirmed":
            return self.summary
        return (
            f"{self.summary} By these numbers the claim {'holds' if self.holds else 'does not hold'}, but they were "
            "written down without the paper at hand: no verdict."
        )

    def column(self, name: str) -> list[Value]:
        """The figures of one column."""
        return [row[self.columns.index(name)] for row in self.numbers]


class Reader:
    """Looks printed numbers up and remembers how each was come by, for the finding that uses them."""

    def __init__(self, paper: str) -> None:
        self.paper = paper
        self.flags: set[str] = set()

    def cell(
        self,
        table: str,
        backbone: str,
        method: str,
        padding: str,
        task: str,
        metric: str | None = None,
        *,
        paper: str | None = None,
    ) -> Reported:
        """A cell that must be there; `padding` "" where the paper has no label.

        Raises:
            UserError: the results folder lacks it.
        """
        paper = paper or self.paper
        found = lookup(table, backbone, method, padding, task, metric=metric, paper=paper)
        if found is None:
            where = ", ".join(part for part in (table, backbone, method, padding, task, metric) if part)
            raise UserError(f"results/reported/{paper}.csv has no row for {where}; restore it from git")
        self.flags.add(found.flag)
        return found

    def value(self, *place: str, **options: str) -> float:
        """The score, size or setting of a cell; arguments as `cell`."""
        return _number(self.cell(*place, **options).value, place)

    def speedup(self, *place: str, **options: str) -> float:
        """The speed-up of a cell; arguments as `cell`."""
        return _number(self.cell(*place, **options).speedup, place)


def _number(value: float | None, place: Sequence[str]) -> float:
    if value is None:
        raise UserError(f"the cell {', '.join(place)} in results/reported is empty; restore it from git")
    return value


def table_2(task: str, metric: str) -> int:
    """Average or input length in tokens, from the Transkimmer paper's Table 2; metric: average_length, input_length."""
    return int(Reader("transkimmer").value("2", "", "", "", task, metric))


def average_length(task: str) -> int:
    """Tokens per text, as Table 2 prints it."""
    return table_2(task, "average_length")


def input_length(task: str) -> int:
    """Padded length in tokens, as Table 2 prints it."""
    return table_2(task, "input_length")


def title(task: str) -> str:
    """A task as the papers print it."""
    extra = {"mnli_mm": "MNLI-mm", "squad_v1": "SQuAD 1.1", "race": "RACE", "boolq": "BoolQ"}
    return TASKS[task].title if task in TASKS else extra.get(task, task)


def agrees(printed: float, computed: float, decimals: int) -> bool:
    """Whether `computed` rounds to what is printed with so many decimals; the edge between two roundings is both's."""
    return abs(printed - computed) <= 0.5 * 10**-decimals + 1e-9


def close(printed: float, computed: float, tolerance: float) -> bool:
    """Whether the two differ by no more than this share of the printed one."""
    return abs(printed - computed) <= tolerance * abs(printed)


def yes(condition: bool) -> str:
    """For a column that says whether a row agrees."""
    return "yes" if condition else "no"


def titles(tasks: Iterable[str]) -> str:
    """Names of tasks in a sentence; "none" for none."""
    return ", ".join(title(task) for task in tasks) or "none"


GLUE_WITHOUT_WNLI = tuple(task for task in GLUE if task != "wnli")
