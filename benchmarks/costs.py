"""What runs will cost, from sizes alone: no model is loaded, no row is read."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import transformers

from benchmarks.formulas import BERT_BASE, DISTILBERT, Sizes, encoder_macs
from benchmarks.progress import duration
from benchmarks.tasks import OFFICIAL_ROWS, Task

if TYPE_CHECKING:
    from benchmarks.cli import Session
    from benchmarks.experiments import Experiment
    from benchmarks.models import ModelRef

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


def row_counts(experiment: Experiment) -> tuple[int, int]:
    """Training and evaluation rows of a run; 0 where only reading the data would tell."""
    limits = experiment.setting.read_train_samples or 0, experiment.setting.max_eval_samples or 0
    official = OFFICIAL_ROWS.get(experiment.task.name)
    if official is None:
        return limits
    return min(official[0], limits[0] or official[0]), min(official[1], limits[1] or official[1])


def sizes_of(model: ModelRef) -> Sizes:
    """An encoder's: of a folder from its configuration, else of the paper profile's encoders by family."""
    if not model.is_folder:
        return SIZES.get(model.family, BERT_BASE)
    config = transformers.AutoConfig.from_pretrained(model.source)
    width = config.hidden_size
    return Sizes(
        layers=config.num_hidden_layers,
        width=width,
        inner=getattr(config, "intermediate_size", None) or config.hidden_dim,
        heads=config.num_attention_heads,
        embedding=getattr(config, "embedding_size", width),
        vocabulary=config.vocab_size,
    )


def mean_tokens(task: Task) -> float:
    """Of a text, as far as the papers say."""
    return min(task.average_length or task.sequence_length, task.sequence_length)


def estimate(experiment: Experiment) -> float:
    """FLOPs of training and evaluating, a backward pass counted as two forward ones; 0 where its rows are unknown."""
    from benchmarks.experiments import work

    train, evaluation = row_counts(experiment)
    if not train:
        return 0.0
    macs = encoder_macs(mean_tokens(experiment.task), sizes_of(experiment.model))
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
    if not flops:
        return "known once the rows are read; --max-train-samples limits them"
    seconds = flops / (ASSUMED_TFLOPS * 1e12)
    return f"about {flops / 1e15:.2g} PFLOPs, {duration(seconds)} of a GPU at {ASSUMED_TFLOPS:.0f} TFLOP/s"
