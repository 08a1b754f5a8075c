"""Evaluation: predictions, score and cost of a trained reducer on one split, really removing tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.data import LABELS, Feature, batches, collate
from benchmarks.flops import CostTotals
from benchmarks.metrics import score
from benchmarks.outcomes import described
from benchmarks.squad import Answer, read_answers
from benchmarks.squad_scores import score_answers
from benchmarks.tags import named, score_tags
from benchmarks.tasks import Task
from benchmarks.train import Compute
from methods import ReducerOutput, TokenReducer

BATCH_SIZE = 32


@dataclass(frozen=True)
class Evaluation:
    """Outcome on one split.

    Attributes:
        scores: metric -> value, in the metric's own unit (accuracies in [0, 1]).
        cost: see `benchmarks.flops.CostTotals.summary`.
        retention: per layer, the share of the tokens that decide the label that is still computed; None if unknown.
        predictions: (texts,) class ids, values, answers ("" for none), or tags with spaces between.
        texts: what each text came out as, for the record; see `benchmarks.outcomes.described`.
        answers: of a span task, (texts,) with the margin of "no answer"; None for the others.
    """

    scores: dict[str, float]
    cost: dict[str, Any]
    retention: list[float] | None
    predictions: np.ndarray
    texts: dict[str, str] | None = None
    answers: list[Answer] | None = None


def evaluate(
    reducer: TokenReducer,
    features: Sequence[Feature],
    task: Task,
    pad_id: int,
    *,
    compute: Compute,
    on_batch: Callable[[int], None] = lambda rows: None,
    threshold: float | None = None,
) -> Evaluation:
    """Score `reducer` in batches of 32 in the order of the rows, packed; windows of one text together give one answer.

    Args:
        threshold: for a span task, of the margin of "no answer", chosen on held-out rows; scored beside the fixed 0.
    """
    reducer.eval()
    totals = CostTotals(task.sequence_length)
    known = "relevant" in features[0]
    relevant = np.zeros(2) if not known else np.zeros((2, reducer.backbone.num_layers))
    outputs: list[Any] = []
    with torch.inference_mode():
        for chunk in batches(features, BATCH_SIZE):
            batch = compute.place(collate(chunk, pad_id, with_relevant=known))
            decisive = batch.pop("relevant", None)
            with compute.autocast():
                output = reducer(**{name: tensor for name, tensor in batch.items() if name not in LABELS})
            totals.add(reducer, output.trace, [feature["index"] for feature in chunk])
            outputs += _outputs(output, task)
            if decisive is not None:
                kept = (output.trace.keep_masks & decisive.unsqueeze(1)).sum(dim=(0, 2)).cpu().numpy()
                relevant += np.stack((kept, np.full_like(kept, int(decisive.sum()))))
            on_batch(len(chunk))
    retention = [round(float(share), 6) for share in relevant[0] / relevant[1]] if known else None
    if task.kind == "span_qa":
        answers = read_answers(features, outputs)
        said = np.array([answer.said() for answer in answers])
        texts = described(task.kind, said, (), answers)
        return Evaluation(score_answers(answers, threshold), totals.summary(), retention, said, texts, answers)
    if task.kind == "token_classification":
        tags = [feature["words"].read(output) for feature, output in zip(features, outputs, strict=True)]
        scores = score_tags(task.label_names, tags, [feature["words"].tags for feature in features])
        said = np.array([" ".join(named(task.label_names, one)) for one in tags])
        return Evaluation(scores, totals.summary(), retention, said)
    predicted, labels = np.array(outputs), np.array([feature["label"] for feature in features])
    texts = described(task.kind, predicted, labels)
    return Evaluation(score(task, predicted, labels), totals.summary(), retention, predicted, texts)


def _outputs(output: ReducerOutput, task: Task) -> list[Any]:
    """Of each sequence: its class id or value, its (start logits, end logits), or the class ids of its tokens."""
    if task.kind == "span_qa":
        assert output.start_logits is not None and output.end_logits is not None
        start, end = (logits.float().cpu().numpy() for logits in (output.start_logits, output.end_logits))
        return list(zip(start, end, strict=True))
    assert output.logits is not None
    if task.kind == "regression":
        return output.logits.squeeze(-1).float().cpu().tolist()
    said = output.logits.argmax(dim=-1).cpu()
    return list(said.numpy()) if task.kind == "token_classification" else said.tolist()
