"""Methods at about the same speed-up: of all their measured settings the nearest one, its loss, and random dropping.

Speed-ups count what is executed, but where a method's paper counts otherwise: these stand under the name of its account
(`Traits.published_cost`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import methods
from benchmarks.comparable import Comparison, first_split, read_comparisons
from benchmarks.compared import Difference, paired
from benchmarks.pareto_rows import Point, points_of

SPEEDS = (1.5, 2.0)
NEAR = 0.15  # speed-ups are about the same where the larger is at most this share above the smaller
BESIDE = ("dense", "random")


@dataclass(frozen=True)
class Operating:
    """A method's setting that is nearest to a speed-up, without padding.

    Attributes:
        seeds: whose mean the score is.
        score, random_score: percent, the latter of random dropping at about the same speed-up; None without one.
        loss: against the dense model; None where outcomes of single texts are unknown.
    """

    setting: str
    seeds: int
    speedup: float
    score: float
    loss: Difference | None
    random_score: float | None
    random_speedup: float | None


def at_speeds(source: Path, titles: Sequence[str]) -> list[tuple[str, str, list[Operating | None]]]:
    """Of the tasks called `titles`: (task, method, its setting nearest to each of `SPEEDS` or None)."""
    found = []
    for comparison in read_comparisons(source):
        if comparison.title in titles:
            found += [(comparison.title, *row) for row in of_comparison(comparison)]
    return found


def of_comparison(comparison: Comparison) -> list[tuple[str, list[Operating | None]]]:
    """The same of one task."""
    points = points_of(comparison)
    dense = next((point for point in points if point.method == "dense"), None)
    random = [point for point in points if point.method == "random"]
    mine: dict[str, list[Point]] = {}
    for point in points:
        if point.method not in BESIDE:
            account = methods.lookup(point.method).traits.published_cost
            mine.setdefault(f"{point.title}, {account}" if account else point.title, []).append(point)
    return [
        (title, [_operating(_nearest(those, speed), dense, random) for speed in SPEEDS])
        for title, those in mine.items()
    ]


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


def _operating(point: Point | None, dense: Point | None, random: Sequence[Point]) -> Operating | None:
    if point is None:
        return None
    loss = None
    if dense is not None and point.resampled is not None and dense.resampled is not None:
        loss = paired(point.score - dense.score, point.resampled - dense.resampled)
    beside = _nearest(random, _speedup(point))
    return Operating(
        setting=point.setting,
        seeds=len(point.records),
        speedup=_speedup(point),
        score=point.score,
        loss=loss,
        random_score=None if beside is None else beside.score,
        random_speedup=None if beside is None else _speedup(beside),
    )
