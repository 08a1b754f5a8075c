"""Finding the pressure at which a method computes a wished-for number of times fewer FLOPs; few trials, each costly.

Pure: a trial is a function of the pressure in [0, 1]. The speed-up is expected to grow with it, but not relied upon to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

CLOSE, NEAR = 0.05, 0.10  # how far from the target, as a share of it: the search stops; the target counts as reached
STEP = 0.25  # of pressure, towards the end that no trial has reached
NARROW = 1e-3  # bracket of pressures between which no other can be told


@dataclass(frozen=True, kw_only=True)
class Point:
    """One trial: at which pressure and options, and the speed-up in FLOPs and score on held-out rows."""

    pressure: float
    speedup: float
    score: float
    options: dict[str, Any] = field(default_factory=dict)

    def distance(self, target: float) -> float:
        """How far the speed-up is from the target, as a share of it."""
        return abs(self.speedup / target - 1)


def search(
    target: float, trial: Callable[[float], Point], *, start: float, trials: int, stop: float = CLOSE
) -> list[Point]:
    """Try pressures until a speed-up is within `stop` of the target or nothing is left to try; all trials in order."""
    points: list[Point] = []
    pressure: float | None = start
    while pressure is not None and len(points) < trials:
        points.append(trial(pressure))
        pressure = None if points[-1].distance(target) <= stop else _next(points, target)
    return points


def _next(points: list[Point], target: float) -> float | None:
    """The next pressure: inside the bracket by interpolation of the logarithms, else a step outwards; None at an end."""
    low = max((p for p in points if p.speedup < target), key=lambda p: p.pressure, default=None)
    above = [p for p in points if p.speedup >= target and (low is None or p.pressure > low.pressure)]
    high = min(above, key=lambda p: p.pressure, default=None)
    if high is None:
        assert low is not None
        return None if low.pressure >= 1 else _outwards(low, target)
    if low is None:
        return None if high.pressure <= 0 else max(0.0, high.pressure - STEP)
    width = high.pressure - low.pressure
    if width < NARROW:
        return None
    rise = math.log(high.speedup / low.speedup)
    share = math.log(target / low.speedup) / rise if rise > 0 else 0.5
    return low.pressure + width * min(0.8, max(0.2, share))


def _outwards(low: Point, target: float) -> float:
    """One step up, or at once to the end where the target is far."""
    return 1.0 if target > 2 * low.speedup else min(1.0, low.pressure + STEP)


def choose(points: Iterable[Point], target: float) -> Point:
    """Of the trials near the target the one with the best score; else the nearest one."""
    points = list(points)
    near = [point for point in points if point.distance(target) <= NEAR]
    return max(near, key=lambda p: p.score) if near else min(points, key=lambda p: abs(math.log(p.speedup / target)))
