"""What a claim is answered with, and the measurements that may answer it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

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


def by_task(found: Iterable[Measured]) -> list[list[Measured]]:
    """What each table has of each task, all splits together."""
    places: dict[tuple[str, str], list[Measured]] = {}
    for one in found:
        places.setdefault((one.table, one.split.partition("/")[0]), []).append(one)
    return list(places.values())


def common_title(some: Sequence[Measured]) -> str:
    """The words that the titles of a task's splits begin with, and its training rows where tables tell them."""
    words = zip(*(one.task.split() for one in some), strict=False)
    title = " ".join(first for first, *others in itertools.takewhile(lambda same: len(set(same)) == 1, words))
    return replace(some[0], task=title).label


def unlearned(found: Iterable[Measured]) -> list[Measured]:
    """Dense models that are no better than giving every text the same answer: with them a task can tell nothing."""
    return [one for one in found if one.method == "dense" and one.trivial is not None and one.score <= one.trivial]


def admitted(found: Sequence[Measured]) -> list[Measured]:
    """What answers claims: the first split of every task that the dense model has learned."""
    first = {one.key: one.split for one in reversed(found)}
    without = {one.key for one in unlearned(found)}
    return [one for one in found if one.split == first[one.key] and one.key not in without]


def admitted_at_speeds(near: Iterable[AtSpeeds], found: Iterable[Measured]) -> list[AtSpeeds]:
    """The same of settings at some speed-ups, which bear the title that the splits of a task share."""
    without = {common_title(some) for some in by_task(found) if unlearned(some)}
    return [one for one in near if one.task not in without]
