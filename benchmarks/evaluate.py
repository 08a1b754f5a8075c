"""Evaluation: predictions, score and cost of a trained reducer on one split, really removing tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.data import Feature, batches, collate
from benchmarks.flops import CostTotals
from benchmarks.metrics import score
from benchmarks.tasks import Task
from benchmarks.train import Compute
from methods import TokenReducer

BATCH_SIZE = 32


@dataclass(frozen=True)
class Evaluation:
    """Outcome on one split.

    Attributes:
        scores: metric -> value, in the metric's own unit (accuracies in [0, 1]).
        cost: see `benchmarks.flops.CostTotals.summary`.
        retention: per layer, the share of the tokens that decide the label that is still computed; None if unknown.
        predictions: (texts,) class ids, or values.
    """

    scores: dict[str, float]
    cost: dict[str, Any]
    retention: list[float] | None
    predictions: np.ndarray


def evaluate(
    reducer: TokenReducer,
    features: Sequence[Feature],
    task: Task,
    pad_id: int,
    *,
    compute: Compute,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> Evaluation:
    """Score `reducer` in batches of 32 in the order of the rows, packed."""
    reducer.eval()
    totals = CostTotals(task.sequence_length)
    known = "relevant" in features[0]
    relevant = np.zeros(2) if not known else np.zeros((2, reducer.backbone.num_layers))
    predictions: list[np.ndarray] = []
    with torch.inference_mode():
        for chunk in batches(features, BATCH_SIZE):
            batch = compute.place(collate(chunk, pad_id, with_relevant=known))
            decisive = batch.pop("relevant", None)
            del batch["labels"]
            with compute.autocast():
                output = reducer(**batch)
            totals.add(reducer, output.trace)
            predictions.append(_predict(output.logits, task))
            if decisive is not None:
                kept = (output.trace.keep_masks & decisive.unsqueeze(1)).sum(dim=(0, 2)).cpu().numpy()
                relevant += np.stack((kept, np.full_like(kept, int(decisive.sum()))))
            on_batch(len(chunk))
    predicted = np.concatenate(predictions)
    labels = np.array([feature["label"] for feature in features])
    retention = [round(float(share), 6) for share in relevant[0] / relevant[1]] if known else None
    return Evaluation(score(task, predicted, labels), totals.summary(), retention, predicted)


def _predict(logits: torch.Tensor, task: Task) -> np.ndarray:
    if task.kind == "regression":
        return logits.squeeze(-1).float().cpu().numpy()
    return logits.argmax(dim=-1).cpu().numpy()
