"""The rows of experiments: tokenised, divided where part is held out, and named by their content."""

from __future__ import annotations

import functools
import hashlib
import json
from typing import TYPE_CHECKING, Any

from benchmarks.data import DataSource, Feature, load_rows, pad_token_id, random_rows, split_rows, tokenize
from benchmarks.models import ModelRef, load_tokenizer
from benchmarks.tasks import Task

if TYPE_CHECKING:
    import datasets

    from benchmarks.experiments import Experiment

HELD_OUT_SHARE, HELD_OUT_ROWS = 0.1, 1_000  # of the training rows, where a stage chooses on them


@functools.lru_cache(maxsize=64)
def _rows(task: Task, split: str, source: DataSource, max_samples: int | None) -> datasets.Dataset:
    return load_rows(task, split, source, max_samples=max_samples)


@functools.lru_cache(maxsize=8)  # the parts of about two tasks; large ones fill gigabytes
def _features(
    task: Task,
    split: str,
    source: DataSource,
    max_samples: int | None,
    model: ModelRef,
    held_out_seed: int | None,
    kept: int | None = None,
) -> tuple[list[Feature], list[Feature]]:
    """Tokenised rows, with `kept` so many random ones at most, and with a seed a held-out part of them (else empty)."""
    tokenizer = load_tokenizer(model)
    rows = _rows(task, split, source, max_samples)
    parts = [rows]
    if held_out_seed is not None:
        share = min(HELD_OUT_SHARE, HELD_OUT_ROWS / len(rows))
        group = task.group_column if task.group_column in rows.column_names else None
        parts = list(split_rows(rows, share, held_out_seed, group))
    if kept is not None:
        parts[0] = random_rows(parts[0], kept)
    done = [tokenize(part, task, tokenizer, max_length=task.sequence_length) for part in parts]
    return done[0], done[1] if len(done) > 1 else []


def held_out_rows(rows: int) -> int:
    """About how many of so many training rows are held out where some are; whole groups are."""
    return round(min(HELD_OUT_SHARE * rows, HELD_OUT_ROWS))


def training_features(experiment: Experiment) -> tuple[list[Feature], list[Feature]]:
    """Tokenised training rows, and those held out from them (empty unless the experiment holds any out)."""
    setting, task = experiment.setting, experiment.task
    seed = experiment.seed if experiment.held_out else None
    limits = setting.read_train_samples, experiment.trained_samples
    return _features(task, task.train_split, setting.source, limits[0], experiment.model, seed, limits[1])


def evaluation_features(experiment: Experiment, split: str) -> list[Feature]:
    """Tokenised rows of an evaluation split."""
    setting = experiment.setting
    return _features(experiment.task, split, setting.source, setting.max_eval_samples, experiment.model, None)[0]


@functools.lru_cache(maxsize=8)
def padding_id(model: ModelRef) -> int:
    """The id that fills padded positions for `model`."""
    return pad_token_id(load_tokenizer(model))


def data_identity(experiment: Experiment) -> dict[str, Any]:
    """Where the rows come from and which they are: number and content hash of every split used."""
    setting, task = experiment.setting, experiment.task
    splits = {task.train_split: setting.read_train_samples}
    splits |= dict.fromkeys(task.eval_splits, setting.max_eval_samples)
    described = {name: _split_identity(task, name, setting.source, limit) for name, limit in splits.items()}
    identity = {"source": setting.source.kind, "revision": task.revision, "splits": described}
    return identity | ({"divided": task.divided, "by": task.group_column} if task.divided else {})


@functools.lru_cache(maxsize=256)
def _split_identity(task: Task, split: str, source: DataSource, limit: int | None) -> dict[str, Any]:
    rows = _rows(task, split, source, limit)
    digest = hashlib.sha256()
    for column in (*task.text_columns, task.label_column):
        digest.update(json.dumps(rows[column][:], ensure_ascii=True).encode())
    return {"rows": len(rows), "sha256": digest.hexdigest()[:16]}
