"""Wall clock of several ways to run the same batches, interleaved: what slows one of them down slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Batch = dict[str, torch.Tensor]


def interleaved(
    ways: Mapping[str, Callable[[Batch], object]], batches: Sequence[Batch], *, rounds: int
) -> dict[str, list[float]]:
    """Seconds that each way takes for all batches, once per round after one to warm up; the order rotates.

    Args:
        batches: on the device that the ways compute on.
    Returns:
        name -> (rounds,) seconds; the same place in two lists was measured side by side.
    """
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with torch.inference_mode():
        for number in range(rounds + 1):
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                _synchronise()
                started = time.perf_counter()
                for batch in batches:
                    ways[name](batch)
                _synchronise()
                if number:
                    seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """How many times faster, by round: the median and the range."""
    ratios = [one / other for one, other in zip(slow, fast, strict=True)]
    return {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def per_text_ms(seconds: Sequence[float], texts: int) -> float:
    """Median milliseconds per text."""
    return 1000 * statistics.median(seconds) / texts


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
