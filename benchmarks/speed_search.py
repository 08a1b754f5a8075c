"""Finding the pressure at which a method computes a wished-for number of times fewer FLOPs; few trials, each costly.

Pure: a trial is a function of the pressure in [0, 1]. The speed-up is expected to grow with it, but not relied upon to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

CLOSE, NEAR = 0.05, 0.10  # how far from the target, as a share of it: the search stops; the target counts as reached
STEP = 0.25  # of pressure, towards an end that no trial has reached
NARROW = 1e-3  # bracket of pressures between which no other can be told


@dataclass(frozen=True, kw_only=True)
class Point:
    """One trial: the options in question, and the speed-up in FLOPs and the score on held-out rows."""

    speedup: float
    score: float
    options: dict[str, Any] = field(default_factory=dict)

    def distance(self, target: float) -> float:
        """How far the speed-up is from the target, as a share of it."""
        return abs(self.speedup / target - 1)


def search(
    target: float, trial: Callable[[float], Point], *, start: float, trials: int, stop: float = CLOSE
) -> dict[float, Point]:
    """Try pressures until a speed-up is within `stop` of the target or nothing is left to try; in order of trial."""
    points: dict[float, Point] = {}
    while len(points) < trials:
        pressure = next_pressure(points, target, start=start, stop=stop)
        if pressure is None:
            break
        points[pressure] = trial(pressure)
    return points


def next_pressure(points: Mapping[float, Point], target: float, *, start: float, stop: float = CLOSE) -> float | None:
    """What to try after `points`; None where one is within `stop` of the target or nothing is left to try.

    It is `start` at first, then inside the bracket, by halves and interpolation, else a step outwards.
    """
    if not points:
        return start
    if any(point.distance(target) <= stop for point in points.values()):
        return None
    low = max((p for p, point in points.items() if point.speedup < target), default=None)
    above = [p for p, point in points.items() if point.speedup >= target and (low is None or p > low)]
    high = min(above, default=None)
    if high is None:
        assert low is not None
        return None if low >= 1 else _outwards(low, points[low].speedup, target)
    if low is None:
        return None if high <= 0 else max(0.0, high - STEP)
    if high - low < NARROW:
        return None
    if len(points) % 2:  # every other time the middle: interpolation alone creeps along a step
        return (low + high) / 2
    share = math.log(target / points[low].speedup) / math.log(points[high].speedup / points[low].speedup)
    return low + (high - low) * min(0.8, max(0.2, share))


def _outwards(low: float, speedup: float, target: float) -> float:
    """One step up, or at once to the end where the target is far."""
    return 1.0 if target > 2 * speedup else min(1.0, low + STEP)


def choose(points: Iterable[Point], target: float) -> Point:
    """Of the trials near the target the one with the best score; else the nearest one."""
    points = list(points)
    near = [point for point in points if point.distance(target) <= NEAR]
    return max(near, key=lambda p: p.score) if near else min(points, key=lambda p: abs(math.log(p.speedup / target)))
