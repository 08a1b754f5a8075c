"""What runs will cost, from sizes alone: no model is loaded, no row is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.formulas import BERT_BASE, DISTILBERT, encoder_macs
from benchmarks.progress import duration
from benchmarks.tasks import OFFICIAL_ROWS, Task

if TYPE_CHECKING:
    from benchmarks.experiments import Experiment

SIZES = {"distilbert": DISTILBERT}  # of the paper profile's encoders, where they are not BERT-base's
ASSUMED_TFLOPS = 50.0  # sustained by one present-day GPU in mixed precision on short texts; an assumption, said as such


def row_counts(task: Task) -> tuple[int, int]:
    """Training and evaluation rows of a task; (0, 0) where only reading the data would tell."""
    return OFFICIAL_ROWS.get(task.name, (0, 0))


def estimate(experiment: Experiment) -> float:
    """FLOPs of training and evaluating, a backward pass counted as two forward ones."""
    from benchmarks.experiments import work

    task = experiment.task
    train, evaluation = row_counts(task)
    limit = experiment.setting.max_train_samples
    train = min(train, limit) if limit else train
    tokens = min(task.average_length or task.sequence_length, task.sequence_length)
    macs = encoder_macs(tokens, SIZES.get(experiment.model.family, BERT_BASE))
    return 2 * macs * work(experiment, train, evaluation)


def estimate_text(flops: float) -> str:
    """For people: PFLOPs and GPU time under the stated assumption."""
    seconds = flops / (ASSUMED_TFLOPS * 1e12)
    return f"about {flops / 1e15:.2g} PFLOPs, {duration(seconds)} of a GPU at {ASSUMED_TFLOPS:.0f} TFLOP/s"
