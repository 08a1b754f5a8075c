"""GLUE's official metric for `evaluate`, offline; use it as `benchmarks.metrics.Glue`.

In a module of its own because importing `evaluate` takes seconds, which commands that only score should not pay.
"""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from benchmarks.errors import UserError
from benchmarks.metrics import GLUE_METRICS, METRICS


class Glue(evaluate.Metric):
    """`Glue(config_name="mrpc").compute(predictions=..., references=...)`: the hub metric's keys and values, offline.

    Configurations: the nine GLUE tasks, mnli_matched and mnli_mismatched. `add_batch` and `evaluate.combine` work.
    A correlation of constant predictions is 0.0 here; the hub metric warns and gives NaN.

    Raises:
        UserError: the configuration is unknown.
    """

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in GLUE_METRICS:
            raise UserError(f"no GLUE metric {self.config_name!r}; choose config_name from {', '.join(GLUE_METRICS)}")
        value = datasets.Value("float32" if self.config_name == "stsb" else "int64")
        return evaluate.MetricInfo(
            description="The metrics of the GLUE benchmark.",
            citation="Wang et al., GLUE, ICLR 2019, https://openreview.net/forum?id=rJ4km2R5t7",
            inputs_description="predictions and references: class ids, or numbers for stsb",
            features=datasets.Features(predictions=value, references=value),
        )

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        found, wanted = np.asarray(predictions), np.asarray(references)
        return {name: METRICS[name](found, wanted) for name in GLUE_METRICS[self.config_name]}
