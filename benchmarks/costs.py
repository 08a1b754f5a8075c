"""What runs will cost, from sizes alone: no model is loaded, no row is read."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.formulas import BERT_BASE, DISTILBERT, encoder_macs
from benchmarks.progress import duration
from benchmarks.tasks import OFFICIAL_ROWS, Task

if TYPE_CHECKING:
    from benchmarks.cli import Session
    from benchmarks.experiments import Experiment

SIZES = {"distilbert": DISTILBERT}  # of the paper profile's encoders, where they are not BERT-base's
ASSUMED_TFLOPS = 50.0  # sustained by one present-day GPU in mixed precision on short texts; an assumption, said as such


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A run that will be made.

    Attributes:
        tokens: mean length of its texts. needs: places in the list of runs of those that come first.
    """

    label: str
    flops: float
    tokens: float
    needs: frozenset[int] = frozenset()


def row_counts(task: Task) -> tuple[int, int]:
    """Training and evaluation rows of a task; (0, 0) where only reading the data would tell."""
    return OFFICIAL_ROWS.get(task.name, (0, 0))


def mean_tokens(task: Task) -> float:
    """Of a text, as far as the papers say."""
    return min(task.average_length or task.sequence_length, task.sequence_length)


def estimate(experiment: Experiment) -> float:
    """FLOPs of training and evaluating, a backward pass counted as two forward ones."""
    from benchmarks.experiments import work

    task, setting = experiment.task, experiment.setting
    train, evaluation = row_counts(task)
    train = min(train, setting.max_train_samples or train)
    evaluation = min(evaluation, setting.max_eval_samples or evaluation)
    macs = encoder_macs(mean_tokens(task), SIZES.get(experiment.model.family, BERT_BASE))
    return 2 * macs * work(experiment, train, evaluation)


def expected_runs(session: Session) -> list[Expected]:
    """Every run of a command, the dense models that others start from and the random twins among them."""
    from benchmarks.experiments import starting_points
    from benchmarks.sweep import has_twin, planned, some_twin

    runs: list[Expected] = []
    places: dict[str, int] = {}

    def expected(experiment: Experiment, label: str, needs: frozenset[int]) -> Expected:
        tokens = mean_tokens(experiment.task)
        return Expected(label=label, flops=estimate(experiment), tokens=tokens, needs=needs)

    def place(experiment: Experiment, use: str = "") -> int:
        """Where a run stands in the list; what it starts from comes before it."""
        key = repr(experiment)
        if key not in places:
            needs = frozenset(place(start, " (start of others)") for start in starting_points(experiment))
            places[key] = len(runs)
            runs.append(expected(experiment, experiment.label + use, needs))
        return places[key]

    for experiment in planned(session):
        own = place(experiment)
        if has_twin(session, experiment):
            twin = some_twin(experiment)
            starts = frozenset(place(start, " (start of others)") for start in starting_points(twin))
            label = f"{experiment.label}: random dropping at its measured schedule"
            runs.append(expected(twin, label, starts | {own}))
    return runs


def makespan(runs: Sequence[Expected], workers: int, seconds: Callable[[Expected], float]) -> float:
    """Seconds that `workers` devices take for all runs, the longest of those whose needs are met starting first.

    Args:
        seconds: of one run on one device.
    """
    waiting = sorted(range(len(runs)), key=lambda place: -runs[place].flops)
    busy: list[tuple[float, int]] = []
    done: set[int] = set()
    now = 0.0
    while waiting or busy:
        ready = [place for place in waiting if runs[place].needs <= done][: workers - len(busy)]
        for place in ready:
            waiting.remove(place)
            heapq.heappush(busy, (now + seconds(runs[place]), place))
        now, ended = heapq.heappop(busy)
        done.add(ended)
    return now


def estimate_text(flops: float) -> str:
    """For people: PFLOPs and GPU time under the stated assumption."""
    seconds = flops / (ASSUMED_TFLOPS * 1e12)
    return f"about {flops / 1e15:.2g} PFLOPs, {duration(seconds)} of a GPU at {ASSUMED_TFLOPS:.0f} TFLOP/s"
