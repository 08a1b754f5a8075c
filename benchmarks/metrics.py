"""Scores of predictions.

`Glue` is the hub's GLUE metric without the hub: `Glue(config_name="mrpc").compute(predictions=..., references=...)`;
`SquadV2` likewise. Answers of span tasks are scored by `benchmarks/squad_scores.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.tasks import Task

if TYPE_CHECKING:
    from benchmarks.glue_metric import Glue as Glue
    from benchmarks.squad_metric import SquadV2 as SquadV2

GLUE_METRICS: dict[str, tuple[str, ...]] = {  # configuration of the GLUE metric -> what it reports
    "cola": ("matthews_correlation",),
    "sst2": ("accuracy",),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearmanr"),
    "mnli": ("accuracy",),
    "mnli_matched": ("accuracy",),
    "mnli_mismatched": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
}


def __getattr__(name: str) -> Any:
    """Import `Glue` or `SquadV2` on first use: their library takes seconds to import, and scoring does not need it."""
    if name == "Glue":
        from benchmarks.glue_metric import Glue

        return Glue
    if name == "SquadV2":
        from benchmarks.squad_metric import SquadV2

        return SquadV2
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def score(task: Task, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
    """All scores of a task, its headline `task.metric` among them.

    Args:
        predictions, references: (n,) class ids, or numbers for a regression.
    Returns:
        classification: accuracy, matthews_correlation, and f1 (of class 1) for two classes or f1_macro (mean over the
        classes that occur) for more;
        regression: pearson, spearmanr, mse. Correlations, Matthews' included, are 0.0 where predictions or references
        are constant (mathematically undefined): a model that says the same of every text has learnt nothing.
    Raises:
        ValueError: nothing to score, shapes differ, a value is not finite or no class id, or the task is span_qa.
    """
    found, wanted = _checked(task, predictions, references)
    if task.kind == "regression":
        names: tuple[str, ...] = ("pearson", "spearmanr", "mse")
    else:
        names = ("accuracy", "matthews_correlation", "f1" if task.num_labels == 2 else "f1_macro")
    return {name: METRICS[name](found, wanted) for name in names}


def _checked(task: Task, predictions: ArrayLike, references: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both as (n,) arrays, float64 or int64; see `score` for what is refused."""
    if task.kind == "span_qa":
        raise ValueError(f"{task.name}: answers are scored from texts and spans, not from single values")
    found, wanted = np.asarray(predictions), np.asarray(references)
    if found.ndim != 1 or found.shape != wanted.shape or found.size == 0:
        raise ValueError(f"{task.name}: expected two equal, non-empty lists, got {found.shape} and {wanted.shape}")
    for values, what in ((found, "predictions"), (wanted, "references")):
        if not np.isfinite(values).all():
            raise ValueError(f"{task.name}: {int((~np.isfinite(values)).sum())} of {values.size} {what} are not finite")
        if task.kind == "classification" and not np.isin(values, np.arange(task.num_labels)).all():
            raise ValueError(f"{task.name}: {what} must be class ids from 0 to {task.num_labels - 1}")
    dtype = np.float64 if task.kind == "regression" else np.int64
    return found.astype(dtype), wanted.astype(dtype)


def _accuracy(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.mean(found == wanted))


def _f1(found: NDArray[Any], wanted: NDArray[Any], *, average: str = "binary") -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(wanted, found, average=average, zero_division=0.0))


def _matthews(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    from sklearn.metrics import matthews_corrcoef

    return 0.0 if _constant(found, wanted) else float(matthews_corrcoef(wanted, found))


def _pearson(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    from scipy.stats import pearsonr

    return 0.0 if _constant(found, wanted) else float(pearsonr(found, wanted).statistic)


def _spearman(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    from scipy.stats import spearmanr

    return 0.0 if _constant(found, wanted) else float(spearmanr(found, wanted).statistic)


def _constant(found: NDArray[Any], wanted: NDArray[Any]) -> bool:
    """Whether one side holds one value only, so that no correlation is defined."""
    return bool(np.ptp(found) == 0 or np.ptp(wanted) == 0)


METRICS: dict[str, Callable[[NDArray[Any], NDArray[Any]], float]] = {  # of predictions and references, both (n,)
    "accuracy": _accuracy,
    "f1": _f1,
    "f1_macro": functools.partial(_f1, average="macro"),
    "matthews_correlation": _matthews,
    "pearson": _pearson,
    "spearmanr": _spearman,
    "mse": lambda found, wanted: float(np.mean(np.square(found - wanted))),
}
