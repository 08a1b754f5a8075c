"""What each text of a split came out as, small enough for a record, and intervals for the scores made from it.

A bootstrap draws the texts anew, with replacement, and scores each draw; all points of one split share the draws, so
that they can be compared. Where a record has no outcomes of single texts, those of accuracy, F1 and the Matthews
correlation follow, up to their order, from the scores: draws of texts need no more, but are then not shared.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from benchmarks.runs import Record
    from benchmarks.squad import Answer

RESAMPLES = 1_000
LEVEL = 0.95
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"  # one class each
OF_TWO_CLASSES = ("f1", "matthews_correlation")  # metrics that follow from the four cells of a confusion
PREDICTIONS, COUNTS = "texts", "scores and number of texts"  # what an interval was computed from
_DRAWS_SEED = 2_022
_CELLS = 4_000_000  # of a matrix (draws, texts) held at a time


def described(
    kind: str, predictions: NDArray[Any], labels: Sequence[Any] | NDArray[Any], answers: Sequence[Answer] | None = None
) -> dict[str, str] | None:
    """Outcomes of all texts as a record has them: a digit for each class, values with four digits, F1 with three.

    None where there are more classes than digits.
    """
    if answers is not None:
        from benchmarks.squad_scores import exact_and_f1

        pairs = [exact_and_f1(answer.said(), answer.passage.answers) for answer in answers]
        return {"f1": " ".join(f"{f1:.3g}" for _, f1 in pairs), "exact": "".join(f"{exact:.0f}" for exact, _ in pairs)}
    if kind == "regression":
        columns = {"labels": labels, "predicted": predictions}
        return {name: " ".join(f"{float(value):.4g}" for value in values) for name, values in columns.items()}
    if max(*predictions, *labels) >= len(DIGITS):
        return None
    return {
        name: "".join(DIGITS[int(value)] for value in values)
        for name, values in (("labels", labels), ("predicted", predictions))
    }


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of the texts of a split under one metric.

    Attributes:
        values: (n, k) float: what the metric sums over texts. metric: as in `Task.metric`. source: see `PREDICTIONS`.
    """

    values: NDArray[np.float64]
    metric: str
    source: str

    def scores(self, weights: NDArray[Any]) -> NDArray[np.float64]:
        """The metric of each draw; `weights` (draws, n) says how often it has each text. (draws,)."""
        step = max(1, _CELLS // len(self.values))
        parts = [weights[i : i + step].astype(np.float64) @ self.values for i in range(0, len(weights), step)]
        return _metric(self.metric, np.concatenate(parts), len(self.values))

    def resampled(self) -> NDArray[np.float64]:
        """The metric of `RESAMPLES` draws."""
        return self.scores(draws(len(self.values)))


def outcomes_of(record: Record, split_name: str | None = None) -> Outcomes | None:
    """What a record knows about the texts of a split, by default its first; None if too little for intervals, or if
    the metric is no sum over texts here, such as the Matthews correlation of more than two classes."""
    metrics = record["metrics"]
    metric, split = metrics["metric"], metrics["splits"][split_name or next(iter(metrics["splits"]))]
    if "texts" in split:
        return _from_texts(metric, split["texts"])
    order = np.random.default_rng(int(record["config_hash"], 16))
    return _from_scores(metric, split["scores"], split["cost"]["texts"], order)


def _from_texts(metric: str, texts: Mapping[str, str]) -> Outcomes | None:
    if metric == "squad_f1" and "f1" in texts:
        return Outcomes(np.array(texts["f1"].split(), float)[:, None], metric, PREDICTIONS)
    if "labels" not in texts:
        return None
    if metric == "pearson":
        x, y = (np.array(texts[name].split(), float) for name in ("labels", "predicted"))
        return Outcomes(np.stack((x, y, x * x, y * y, x * y), axis=1), metric, PREDICTIONS)
    if metric not in ("accuracy", *OF_TWO_CLASSES):
        return None
    labels, predicted = (np.array([DIGITS.index(digit) for digit in texts[name]]) for name in ("labels", "predicted"))
    if metric in OF_TWO_CLASSES and max(*labels, *predicted) > 1:
        return None
    return Outcomes(_classified(metric, labels, predicted), metric, PREDICTIONS)


def _classified(metric: str, labels: NDArray[Any], predicted: NDArray[Any]) -> NDArray[np.float64]:
    if metric == "accuracy":
        return (labels == predicted).astype(float)[:, None]
    cells = [(labels == real) & (predicted == said) for real in (1, 0) for said in (1, 0)]
    return np.stack(cells, axis=1).astype(float)  # true positives, false negatives, false positives, true negatives


def _from_scores(metric: str, scores: Mapping[str, float], texts: int, rng: np.random.Generator) -> Outcomes | None:
    """Texts that give these scores, in a random order."""
    if metric == "accuracy":
        right = round(scores["accuracy"] * texts)
        return Outcomes(rng.permutation(np.arange(texts) < right).astype(float)[:, None], metric, COUNTS)
    if not {"accuracy", "f1", "matthews_correlation"} <= set(scores):
        return None
    confusion = _confusion(scores, texts)
    if confusion is None:
        return None
    return Outcomes(np.repeat(np.eye(4), confusion, axis=0)[rng.permutation(texts)], metric, COUNTS)


def _confusion(scores: Mapping[str, float], texts: int) -> NDArray[np.int64] | None:
    """The true positives, false negatives, false positives and true negatives that have these scores; None if none."""
    wrong = round((1 - scores["accuracy"]) * texts)
    f1 = scores["f1"]
    positives = 0 if f1 == 0 else round(f1 * wrong / (2 - 2 * f1)) if f1 < 1 else None
    if positives is None or positives + wrong > texts:
        return None
    missed = np.arange(wrong + 1)
    cells = np.stack(
        (np.full_like(missed, positives), missed, wrong - missed, texts - wrong - positives + 0 * missed), 1
    )
    gaps = np.abs(_metric("matthews_correlation", cells, texts) - scores["matthews_correlation"])
    best = int(gaps.argmin())
    fits = gaps[best] < 1e-6 and abs(_metric("f1", cells[best : best + 1], texts)[0] - f1) < 1e-6
    return cells[best] if fits else None


def _metric(metric: str, sums: NDArray[Any], texts: int) -> NDArray[np.float64]:
    """The metric from sums over texts (draws, k); 0 where it is not defined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if metric in ("accuracy", "squad_f1"):
            found = sums[:, 0] / texts
        elif metric == "pearson":
            x, y, xx, yy, xy = sums.T / texts
            found = (xy - x * y) / np.sqrt((xx - x * x) * (yy - y * y))
        else:
            tp, fn, fp, tn = sums.T.astype(float)
            if metric == "f1":
                found = 2 * tp / (2 * tp + fp + fn)
            else:
                found = (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return np.nan_to_num(found)


@functools.lru_cache(maxsize=2)
def draws(texts: int) -> NDArray[np.uint8]:
    """How often each of `RESAMPLES` draws of `texts` texts has each of them; (draws, texts), the same every time."""
    rng = np.random.default_rng(_DRAWS_SEED)
    chosen = (rng.integers(0, texts, texts) for _ in range(RESAMPLES))
    return np.stack([np.bincount(one, minlength=texts).astype(np.uint8) for one in chosen])


def interval(resampled: NDArray[np.float64]) -> tuple[float, float]:
    """The middle `LEVEL` of resampled values: (low, high)."""
    low, high = np.quantile(resampled, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)
