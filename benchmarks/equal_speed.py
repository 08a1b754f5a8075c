"""Methods at about the same speed-up: of all their measured settings the nearest one, its loss, and random dropping.

Speed-ups count what is executed, but where a method's paper counts otherwise: these stand under the name of its account
(`Traits.published_cost`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

import methods
from benchmarks.comparable import Comparison, first_split
from benchmarks.compared import Difference, paired
from benchmarks.outcomes import PREDICTIONS, outcomes_of
from benchmarks.pareto_rows import Point, points_of
from benchmarks.runs import Record

SPEEDS = (1.5, 2.0)
NEAR = 0.15  # speed-ups are about the same where the larger is at most this share above the smaller


@dataclass(frozen=True)
class Run:
    """One seed.

    Attributes:
        score: percent. drawn: (draws,) the same of texts drawn anew, the same ones for every method; None where
            outcomes of single texts are unknown. constant: every text has the same answer.
    """

    seed: int
    score: float
    drawn: NDArray[np.float64] | None = field(compare=False, repr=False, default=None)
    constant: bool = False


@dataclass(frozen=True)
class Operating:
    """A method's setting that is nearest to a speed-up, without padding.

    Attributes:
        runs: what each seed came to. random_score: of random dropping at about the same speed-up, if any.
        loss: against the dense model of the same seeds; None where outcomes of single texts are unknown.
    """

    setting: str
    runs: tuple[Run, ...]
    speedup: float
    loss: Difference | None
    random_score: float | None
    random_speedup: float | None

    @property
    def scores(self) -> tuple[float, ...]:
        """Percent, of each seed in order."""
        return tuple(run.score for run in self.runs)

    @property
    def constant(self) -> bool:
        """Whether a seed gives every text the same answer: no operating point, whatever it scores."""
        return any(run.constant for run in self.runs)

    @property
    def score(self) -> float:
        """Mean of the seeds, percent."""
        return float(np.mean(self.scores))


@dataclass(frozen=True)
class AtSpeeds:
    """Of one method on one task the setting nearest to each of `SPEEDS`, None where none is near.

    Attributes:
        title: of the method, and of the account of its cost where that is not what is executed. every: all settings, by
            speed-up.
    """

    task: str
    method: str
    title: str
    settings: tuple[Operating | None, ...]
    every: tuple[Operating, ...] = ()


def at_speeds(comparisons: Iterable[Comparison]) -> list[AtSpeeds]:
    """Of every method, the dense model among them."""
    return [one for comparison in comparisons for one in _of(comparison)]


def _of(comparison: Comparison) -> list[AtSpeeds]:
    points = points_of(comparison)
    dense = next((point for point in points if point.method == "dense"), None)
    random = [point for point in points if point.method == "random"]
    found = []
    for method in dict.fromkeys(point.method for point in points if point.method != "random"):
        mine = [point for point in points if point.method == method]
        title, account = mine[0].title, methods.lookup(method).traits.published_cost
        every = {point.setting: _operating(point, dense, random) for point in sorted(mine, key=_speedup)}
        nearest = (_nearest(mine, speed) for speed in SPEEDS)
        found.append(
            AtSpeeds(
                task=comparison.title,
                method=method,
                title=f"{title}, {account}" if account else title,
                settings=tuple(None if point is None else every[point.setting] for point in nearest),
                every=tuple(every.values()),
            )
        )
    return found


def _nearest(points: Sequence[Point], speed: float) -> Point | None:
    """The point whose speed-up is about `speed`, and nearest to it."""

    def distance(point: Point) -> float:
        return abs(math.log(_speedup(point) / speed))

    best = min(points, key=distance, default=None)
    return best if best is not None and distance(best) <= math.log1p(NEAR) else None


def _speedup(point: Point) -> float:
    account = methods.lookup(point.method).traits.published_cost
    costs = [first_split(record)["cost"]["padding"]["none"] for record in point.records]
    return float(np.mean([(cost["extra"][account] if account else cost)["speedup"] for cost in costs]))


def difference(mine: Iterable[Run], others: Iterable[Run]) -> Difference | None:
    """Of the seeds that both have; None without one, or where outcomes of texts are unknown."""
    theirs = {run.seed: run for run in others}
    pairs = [(run, theirs[run.seed]) for run in mine if run.seed in theirs]
    drawn = [own.drawn - other.drawn for own, other in pairs if own.drawn is not None and other.drawn is not None]
    if not pairs or len(drawn) < len(pairs):
        return None
    return paired([own.score for own, _ in pairs], [other.score for _, other in pairs], np.mean(drawn, axis=0))


def _runs(point: Point) -> tuple[Run, ...]:
    """By seed."""
    return tuple(sorted(map(_run, point.records), key=lambda run: run.seed))


def _run(record: Record) -> Run:
    outcomes = outcomes_of(record)
    drawn = 100 * outcomes.resampled() if outcomes and outcomes.source == PREDICTIONS else None
    said = first_split(record).get("texts", {}).get("predicted", "")
    constant = bool(said) and len(set(said.split() if " " in said else said)) == 1
    return Run(record["config"]["seed"], 100 * record["metrics"]["score"], drawn, constant)


def _operating(point: Point, dense: Point | None, random: Sequence[Point]) -> Operating:
    runs, beside = _runs(point), _nearest(random, _speedup(point))
    return Operating(
        setting=point.setting,
        runs=runs,
        speedup=_speedup(point),
        loss=None if dense is None else difference(runs, _runs(dense)),
        random_score=None if beside is None else beside.score,
        random_speedup=None if beside is None else _speedup(beside),
    )
