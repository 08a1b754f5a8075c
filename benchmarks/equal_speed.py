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
from benchmarks.pareto_rows import Point, points_of

SPEEDS = (1.5, 2.0)
NEAR = 0.15  # speed-ups are about the same where the larger is at most this share above the smaller


@dataclass(frozen=True)
class Operating:
    """A method's setting that is nearest to a speed-up, without padding.

    Attributes:
        scores: percent, of each seed in order. random_score: of random dropping at about the same speed-up, if any.
        loss: against the dense model of the same seeds. drawn: (draws,) scores on texts drawn anew, the same ones for
            every method. Both None where outcomes of single texts are unknown.
    """

    setting: str
    scores: tuple[float, ...]
    speedup: float
    loss: Difference | None
    random_score: float | None
    random_speedup: float | None
    drawn: NDArray[np.float64] | None = field(compare=False, repr=False, default=None)

    @property
    def score(self) -> float:
        """Mean of the seeds."""
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


def _scores(point: Point) -> tuple[float, ...]:
    """Percent, of each seed in order."""
    in_order = sorted(point.records, key=lambda record: record["config"]["seed"])
    return tuple(100 * record["metrics"]["score"] for record in in_order)


def _operating(point: Point, dense: Point | None, random: Sequence[Point]) -> Operating:
    loss, dense = None, dense and dense.of_seeds(point.seeds)
    if dense is not None and point.resampled is not None and dense.resampled is not None:
        loss = paired(_scores(point), _scores(dense), point.resampled - dense.resampled)
    beside = _nearest(random, _speedup(point))
    return Operating(
        setting=point.setting,
        scores=_scores(point),
        speedup=_speedup(point),
        loss=loss,
        random_score=None if beside is None else beside.score,
        random_speedup=None if beside is None else _speedup(beside),
        drawn=point.resampled,
    )
