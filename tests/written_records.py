"""Records as a training command writes them, made up, for what only reads records."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import methods
from benchmarks.runs import Record, RunConfig, RunStore, make_record
from benchmarks.tasks import TASKS

LAYERS = 3


def run_config(method: str, *, task: str = "mood", seed: int = 42, recipe: str = "short", **changes: Any) -> RunConfig:
    """The configuration of a run by the recipe; `options` are put over the recipe's own."""
    cls, known = methods.lookup(method), TASKS.get(task)
    described = SimpleNamespace(name=task, kind="classification", sequence_length=64, skim_weight=0.5)
    options = cls.task_options(known or described, recipe) | changes.pop("options", {})
    fields: dict[str, Any] = {
        "kind": "finetune",
        "task": task,
        "method": method,
        "backbone": "sha256:ab",
        "data": {"source": "data_dir", "splits": {"train": {"rows": 90}, "validation": {"rows": 40}}},
        "seed": seed,
        "options": cls.options_class(**options).recorded(),
        "recipe": recipe,
        "stages": cls.recipe_stages(known or described, recipe),
        "max_length": known.sequence_length if known else 64,
        "extra": {"max_eval_samples": None, "eval_batch_size": 32, "held_out": False},
    }
    return RunConfig(**(fields | changes))


def write_record(
    results: Path,
    method: str,
    *,
    score: float = 0.8,
    speedup: float = 2.0,
    shares: tuple[float, ...] = (1.0, 0.5, 0.25),
    metric: str = "accuracy",
    metrics: dict[str, Any] | None = None,
    texts: Any = None,
    **changes: Any,
) -> Record:
    """Write a finished run with this outcome; padded settings are 1.5 and 3 times as fast."""
    config = run_config(method, **changes)
    padding = {
        name: {"speedup": speedup * factor, "speedup_mean_of_ratios": speedup * factor,
               "speedup_of_unpadding_alone": factor}
        for name, factor in (("none", 1.0), ("batch", 1.5), ("sequence", 3.0))
    }  # fmt: skip
    cost = {"texts": 40, "padding": padding, "keep_ratio": sum(shares) / len(shares), "ffn_share": shares}
    split = {"scores": {metric: score}, "cost": cost, "retention": None} | ({"texts": texts} if texts else {})
    found = {"metric": metric, "score": score, "splits": {"validation": split}} | (metrics or {})
    record = make_record(config, started_at="2026-01-01T00:00:00+00:00", wall_s=2.0, metrics=found)
    RunStore(results).write(config, record)
    return record
