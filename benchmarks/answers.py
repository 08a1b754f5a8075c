"""What a claim is answered with, and the measurements that may answer it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import methods
from benchmarks.compared import Measured
from benchmarks.equal_speed import AtSpeeds

HOLDS, FAILS, OPEN = "holds here", "does not hold here", "not decided here"
ABSENT, UNDECIDABLE, UNTESTED = "not measured here", "not decidable here", "not tested here"
DASH = "–"  # noqa: RUF001


@dataclass(frozen=True)
class Answer:
    """What the records say of a claim.

    Attributes:
        summary: why, in a line. table: the evidence; its header first.
    """

    verdict: str
    summary: str = ""
    table: tuple[tuple[str, ...], ...] = ()


Judge = Callable[[Sequence[Measured]], Answer]  # of all that may answer
NOTHING = Answer(ABSENT, "no record of it")


def by_count(better: int, worse: int, every: int) -> str:
    """The rule of all claims that something is better: holds where it is certainly better in every comparison, fails
    where it is certainly worse in more of them than it is certainly better in."""
    return HOLDS if better == every else FAILS if worse > better else OPEN


def of(found: Iterable[Measured], *names: str) -> list[Measured]:
    """Those of some methods."""
    return [one for one in found if one.method in names]


def place(one: Measured, some: Iterable[Measured]) -> str:
    """The task, and where `some` have several encoders, that."""
    return one.label if len({other.model for other in some}) == 1 else f"{one.label}, {one.model}"


def selects_tokens(method: str) -> bool:
    """Whether a method says of single tokens that they stay or go: not early exits, not DeFormer."""
    return methods.lookup(method).traits.dropped not in ("none", "exits")


def unlearned(found: Iterable[Measured]) -> list[Measured]:
    """Dense models that are no better than giving every text the same answer: with them a task can tell nothing."""
    return [one for one in found if one.method == "dense" and one.trivial is not None and one.score <= one.trivial]


def admitted(found: Sequence[Measured]) -> list[Measured]:
    """What answers claims: the first split of every task that the dense model has learned."""
    first = {one.key: one.split for one in reversed(found)}
    without = {one.key for one in unlearned(found)}
    return [one for one in found if one.split == first[one.key] and one.key not in without]


def admitted_at_speeds(near: Iterable[AtSpeeds], found: Iterable[Measured]) -> list[AtSpeeds]:
    """The same of settings at some speed-ups."""
    without = {one.label for one in unlearned(found)}
    return [one for one in near if one.task not in without]
