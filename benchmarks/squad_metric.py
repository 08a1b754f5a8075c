"""SQuAD v2's official metric for `evaluate`, offline; use it as `benchmarks.metrics.SquadV2`.

In a module of its own for the same reason as `benchmarks/glue_metric.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import UserError
from benchmarks.squad_scores import best_threshold, exact_and_f1


class SquadV2(evaluate.Metric):
    """`SquadV2().compute(predictions=..., references=...)`: the hub metric's keys and values, in percent, offline.

    Predictions are {"id", "prediction_text", "no_answer_probability"}, references {"id", "answers": {"text",
    "answer_start"}}; answers of a question without one are empty lists. `compute(no_answer_threshold=...)`, 1.0 by
    default, says above which probability no answer is given. `best_*` are the best over all thresholds: an upper bound,
    as they are chosen on the references. `add_batch` works.

    Raises:
        UserError: the ids of predictions and references differ.
    """

    def _info(self) -> evaluate.MetricInfo:
        text, place = datasets.Value("string"), datasets.Value("int32")
        return evaluate.MetricInfo(
            description="The metric of SQuAD v2.0.",
            citation="Rajpurkar et al., Know What You Don't Know, ACL 2018, https://aclanthology.org/P18-2124",
            inputs_description="see the class",
            features=datasets.Features(
                predictions={"id": text, "prediction_text": text, "no_answer_probability": datasets.Value("float32")},
                references={"id": text, "answers": {"text": datasets.List(text), "answer_start": datasets.List(place)}},
            ),
        )

    def _compute(
        self,
        predictions: Sequence[Mapping[str, Any]],
        references: Sequence[Mapping[str, Any]],
        no_answer_threshold: float = 1.0,
    ) -> dict[str, float]:
        said = {row["id"]: row for row in predictions}
        if set(said) != {row["id"] for row in references} or len(said) < len(predictions):
            raise UserError("every reference needs one prediction with its id, and no other")
        found = [said[row["id"]] for row in references]
        right = [row["answers"]["text"] for row in references]
        scores = np.array(
            [exact_and_f1(row["prediction_text"], golds) for row, golds in zip(found, right, strict=True)]
        )
        doubt = np.array([row["no_answer_probability"] for row in found])
        has = np.array([bool(golds) for golds in right])
        kept = np.where((doubt > no_answer_threshold)[:, None], ~has[:, None], scores)  # with "" for some answers
        return _means(kept, has) | _best(scores, doubt, has)


def _means(scores: NDArray[np.float64], has: NDArray[np.bool_]) -> dict[str, float]:
    """Of (n, 2) exact and F1: over all texts, those with and those without an answer."""
    result: dict[str, float] = {}
    for prefix, chosen in (("", np.ones_like(has)), ("HasAns_", has), ("NoAns_", ~has)):
        if chosen.any():
            exact, f1 = 100 * scores[chosen].mean(axis=0)
            result |= {f"{prefix}exact": float(exact), f"{prefix}f1": float(f1), f"{prefix}total": int(chosen.sum())}
    return result


def _best(scores: NDArray[np.float64], doubt: NDArray[np.float64], has: NDArray[np.bool_]) -> dict[str, float]:
    result: dict[str, float] = {}
    for column, name in enumerate(("exact", "f1")):
        threshold, score = best_threshold(scores[:, column], doubt, has)
        result |= {f"best_{name}": 100 * score, f"best_{name}_thresh": max(threshold, 0.0)}
    return result
