"""Interleaved timing: subjects take turns in one process, so that a slow minute of the machine hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Samples:
    """What the clocks said of one subject, one entry per round.

    Attributes:
        wall_s: wall clock of one pass, device synchronised. cpu_s: processor time of the process, all its threads.
    """

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


def interleave(
    subjects: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    device: str = "cpu",
    warm_up: int = 1,
    on_pass: Callable[[str], None] = lambda name: None,
) -> dict[str, Samples]:
    """Run all subjects in every round, forwards and backwards in turn, after `warm_up` rounds that are not counted.

    Raises:
        ValueError: fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    samples = {name: Samples() for name in subjects}
    for number in range(-warm_up, rounds):
        order = list(subjects) if number % 2 == 0 else list(subjects)[::-1]
        for name in order:
            wall, cpu = timed(subjects[name], device)
            if number >= 0:
                samples[name].wall_s.append(wall)
                samples[name].cpu_s.append(cpu)
            on_pass(name)
    return samples


def timed(run: Callable[[], object], device: str = "cpu") -> tuple[float, float]:
    """Seconds of wall clock and of processor time that one call takes, until the device is done."""
    synchronise(device)
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    synchronise(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def synchronise(device: str) -> None:
    """Wait for what the device still computes."""
    if device == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Ratio:
    """A ratio of two subjects' times, from the rounds that they ran in beside each other.

    Attributes:
        median: of the rounds' ratios. low, high: their quartiles (both the only value where there is one round).
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, slow: Sequence[float], fast: Sequence[float]) -> Ratio:
        """How many times `fast` fits into `slow`, round by round.

        Raises:
            ValueError: no rounds, or not as many of each.
        """
        each = [a / b for a, b in zip(slow, fast, strict=True)]
        if not each:
            raise ValueError("a ratio needs at least one round")
        low, _, high = statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else each * 3
        return cls(statistics.median(each), low, high)

    def as_list(self) -> list[float]:
        """Median and quartiles, rounded for a record."""
        return [round(value, 4) for value in (self.median, self.low, self.high)]


def ratio_range(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """How many times `fast` fits into `slow`, round by round: the median and the range."""
    ratios = [one / other for one, other in zip(slow, fast, strict=True)]
    return {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def peak_memory_bytes(run: Callable[[], object], device: str = "cpu") -> int:
    """Most memory that torch held at a time during one call, above what it held before it.

    On a CPU this is what went through torch's allocator, without the scratch space inside matrix libraries.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profiler:
        run()
    return _highest(profiler)


def _highest(profiler: Any) -> int:
    """The highest running sum of allocations and releases that a profiler saw."""
    held = highest = 0
    events = (event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]")
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest
