"""What runs will cost, from sizes alone: no model is loaded, no row is read."""

from __future__ import annotations

from benchmarks.experiments import Experiment
from benchmarks.progress import duration
from benchmarks.tasks import OFFICIAL_ROWS, Task

# Layers, width and feed-forward width of the paper profile's encoders; the same for all but DistilBERT's depth.
DEPTH, WIDTH, INTERMEDIATE = {"distilbert": 6}, 768, 3072
BASE_DEPTH = 12
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
    depth = DEPTH.get(experiment.model.family, BASE_DEPTH)
    layer = 4 * WIDTH**2 * tokens + 2 * WIDTH * tokens**2 + 2 * WIDTH * INTERMEDIATE * tokens
    return 2 * depth * layer * work(experiment, train, evaluation)


def estimate_text(flops: float) -> str:
    """For people: PFLOPs and GPU time under the stated assumption."""
    seconds = flops / (ASSUMED_TFLOPS * 1e12)
    return f"about {flops / 1e15:.2g} PFLOPs, {duration(seconds)} of a GPU at {ASSUMED_TFLOPS:.0f} TFLOP/s"
