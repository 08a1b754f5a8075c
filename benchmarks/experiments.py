"""Experiments: one method trained by its recipe and scored on one task. Planned as data, run once, kept as records."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import torch

import methods
from benchmarks.checkpoints import Partial, UnusableCheckpoint, remove_partial
from benchmarks.data import DataSource, Feature, load_rows, pad_token_id, split_rows, tokenize
from benchmarks.embedded import skimbench_home
from benchmarks.evaluate import BATCH_SIZE, evaluate
from benchmarks.files import writing
from benchmarks.models import ModelRef, load_model, load_tokenizer
from benchmarks.runs import Record, RunConfig, RunStore
from benchmarks.squad import MAX_ANSWER, MAX_QUESTION, N_BEST
from benchmarks.squad_scores import tuned_threshold
from benchmarks.tasks import Task
from benchmarks.train import Compute, train_stage, updates_of
from methods import Stage, TokenReducer, Trial
from methods.recipes import FINE_TUNE

if TYPE_CHECKING:
    import datasets

KIND = "finetune"
HELD_OUT_SHARE, HELD_OUT_ROWS = 0.1, 1_000  # of the training rows, where a stage chooses on them
Report = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all runs of a command share."""

    recipe: str  # "paper" or "short"
    source: DataSource
    compute: Compute
    max_train_samples: int | None = None
    max_eval_samples: int | None = None


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run; `options` are complete, `stages` in order.

    With `held_out`, part of the training rows is kept from training: for a run that chooses on them, and for the dense
    model that it starts from, which must not have seen them either.
    """

    setting: Setting
    model: ModelRef
    task: Task
    method: str
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    held_out: bool = False

    @property
    def label(self) -> str:
        """For people: what is running."""
        return f"{self.task.title}: {methods.lookup(self.method).traits.title} on {self.model.title}, seed {self.seed}"

    def config(self) -> RunConfig:
        """Everything that decides the result; reads the rows to name them."""
        options_class = methods.lookup(self.method).options_class
        return RunConfig(
            kind=KIND,
            task=self.task.name,
            method=self.method,
            backbone=self.model.identity,
            data=data_identity(self),
            seed=self.seed,
            options=vars(options_class(**self.options)),
            recipe=self.setting.recipe,
            stages=self.stages,
            max_length=self.task.sequence_length,
            max_train_samples=self.setting.max_train_samples,
            dtype=self.setting.compute.dtype,
            device=self.setting.compute.device,
            extra={
                "max_eval_samples": self.setting.max_eval_samples,
                "eval_batch_size": BATCH_SIZE,
                "held_out": self.held_out,
                **_reading(self.task),
            },
        )

    def dense(self, stage: Stage | None = None) -> Experiment:
        """The dense model that this experiment starts from: fine-tuned by `stage`, or by the recipe's own."""
        stages = (stage,) if stage else None
        return plan(self.setting, self.model, self.task, "dense", self.seed, stages=stages, held_out=self.held_out)


def plan(
    setting: Setting,
    model: ModelRef,
    task: Task,
    method: str,
    seed: int,
    *,
    options: Mapping[str, Any] | None = None,
    stages: tuple[Stage, ...] | None = None,
    held_out: bool = False,
) -> Experiment:
    """An experiment with the recipe's options (overridden by `options`) and stages.

    `held_out` keeps rows from training even if no stage needs them; span tasks always choose a threshold on them.
    """
    cls = methods.lookup(method)
    chosen = cls.task_options(task, setting.recipe) | dict(options or {})
    recipe = stages if stages is not None else tuple(cls.recipe_stages(task, setting.recipe, model.family))
    return Experiment(
        setting=setting,
        model=model,
        task=task,
        method=method,
        seed=seed,
        options=chosen,
        stages=recipe,
        held_out=held_out or task.kind == "span_qa" or any(stage.holds_out for stage in recipe),
    )


def _reading(task: Task) -> dict[str, int]:
    """How long contexts are read, where they are."""
    if task.kind != "span_qa":
        return {}
    return {"stride": task.stride, "max_question": MAX_QUESTION, "n_best": N_BEST, "max_answer": MAX_ANSWER}


def supports(method: str, task: Task) -> str | None:
    """None if `method` can do `task`, else the reason why not."""
    unsupported = methods.lookup(method).traits.unsupported
    alone = unsupported.get("single_text") if len(task.text_columns) == 1 else None
    return unsupported.get(task.kind) or alone


# Rows ---------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _rows(task: Task, split: str, source: DataSource, max_samples: int | None) -> datasets.Dataset:
    return load_rows(task, split, source, max_samples=max_samples)


@functools.lru_cache(maxsize=64)
def _features(
    task: Task, split: str, source: DataSource, max_samples: int | None, model: ModelRef, held_out_seed: int | None
) -> tuple[list[Feature], list[Feature]]:
    """Tokenised rows and, with a seed, a held-out part of them (else empty)."""
    tokenizer = load_tokenizer(model)
    rows = _rows(task, split, source, max_samples)
    parts = [rows]
    if held_out_seed is not None:
        share = min(HELD_OUT_SHARE, HELD_OUT_ROWS / len(rows))
        group = task.group_column if task.group_column in rows.column_names else None
        parts = list(split_rows(rows, share, held_out_seed, group))
    done = [tokenize(part, task, tokenizer, max_length=task.sequence_length) for part in parts]
    return done[0], done[1] if len(done) > 1 else []


def held_out_features(experiment: Experiment) -> list[Feature]:
    """Tokenised training rows that an experiment with `held_out` does not train on."""
    task, setting, seed = experiment.task, experiment.setting, experiment.seed if experiment.held_out else None
    return _features(task, task.train_split, setting.source, setting.max_train_samples, experiment.model, seed)[1]


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
    splits = {task.train_split: setting.max_train_samples}
    splits |= dict.fromkeys(task.eval_splits, setting.max_eval_samples)
    described = {name: _split_identity(task, name, setting.source, limit) for name, limit in splits.items()}
    identity = {"source": setting.source.kind, "revision": task.revision, "splits": described}
    return identity | ({"divided": task.divided, "by": task.group_column} if task.divided else {})


@functools.lru_cache(maxsize=256)
def _split_identity(task: Task, split: str, source: DataSource, limit: int | None) -> dict[str, Any]:
    rows = _rows(task, split, source, limit)
    digest = hashlib.sha256()
    for column in (*task.text_columns, task.label_column):
        digest.update(json.dumps(list(rows[column]), ensure_ascii=True).encode())
    return {"rows": len(rows), "sha256": digest.hexdigest()[:16]}


# Running ------------------------------------------------------------------------------------------------------------


def run(experiment: Experiment, store: RunStore, report: Report = lambda units: None) -> Record:
    """The record of an experiment, computing it if there is none; `report` is told units of work done."""
    record = store.run(experiment.config(), lambda: _compute(experiment, store, report))
    if record["status"] == "ok":
        remove_partial(record["config_hash"])
    return record


def trained(experiment: Experiment, store: RunStore, report: Report = lambda units: None) -> TokenReducer:
    """The trained reducer of an experiment, in eval mode; trained again where only its record is left."""
    folder = checkpoint_folder(experiment)
    record = run(experiment, store, report)
    if record["status"] != "ok":
        raise RuntimeError(f"{experiment.label} failed before: {record['error']}")
    if not folder.is_dir():
        with store.lock(experiment.config()):
            if not folder.is_dir():
                _compute(experiment, store, report)
                remove_partial(record["config_hash"])
    return methods.load(str(folder)).eval()


def checkpoint_folder(experiment: Experiment) -> Path:
    """Where the trained weights of an experiment lie; an ignored folder, made again when needed."""
    return skimbench_home() / "checkpoints" / f"{experiment.task.name}-{experiment.method}-{experiment.config().hash}"


def _compute(experiment: Experiment, store: RunStore, report: Report) -> dict[str, Any]:
    """Train and score; goes on from the checkpoints of a killed process, where there are any."""
    with Partial.open(experiment.config().hash, store.opened_at if store.force else "") as partial:
        try:
            return _train_and_score(experiment, store, report, partial)
        except UnusableCheckpoint as error:
            partial.refuse(error)
            return _train_and_score(experiment, store, report, partial)


def _train_and_score(experiment: Experiment, store: RunStore, report: Report, partial: Partial) -> dict[str, Any]:
    task, setting = experiment.task, experiment.setting
    features, held_out = _features(
        task,
        task.train_split,
        setting.source,
        setting.max_train_samples,
        experiment.model,
        experiment.seed if experiment.held_out else None,
    )
    pad_id = padding_id(experiment.model)
    reducer = _fresh(experiment)

    def trial(candidate: TokenReducer) -> Trial:
        result = evaluate(candidate, held_out, task, pad_id, compute=setting.compute)
        cost = result.cost["padding"]["none"]
        macs, dense = 1e9 * cost["method_gmacs_mean"], 1e9 * cost["dense_gmacs_mean"]
        return Trial(score=result.scores[task.metric], macs=macs, dense_macs=dense)

    finished, history = partial.resume(reducer)
    for number, stage in enumerate(experiment.stages):
        if number < finished:
            continue
        _set_teacher(experiment, stage, reducer, store, report)
        _load_start(experiment, stage, number, reducer, store, report)
        if stage.name == FINE_TUNE and experiment.method != "dense":
            continue  # the shared dense run trained it, and it was loaded as the stage's result
        outcome = train_stage(
            reducer,
            stage,
            features,
            pad_id,
            seed=experiment.seed,
            compute=setting.compute,
            on_update=_in_units(report, units_per_row(stage)),
            trial=trial if held_out else None,
            partial=partial,
        )
        history.append(outcome)
        partial.finish_stage(number, reducer, history)
    threshold = None
    if task.kind == "span_qa":
        threshold = tuned_threshold(evaluate(reducer, held_out, task, pad_id, compute=setting.compute).answers or [])
    splits = {
        split: _evaluate_split(experiment, split, reducer, pad_id, report, threshold) for split in task.eval_splits
    }
    _save(reducer, checkpoint_folder(experiment))
    return _metrics(experiment, splits, history, reducer)


def _metrics(
    experiment: Experiment, splits: dict[str, Any], history: list[dict[str, Any]], reducer: TokenReducer
) -> dict[str, Any]:
    """What a record says: the score is that of the first split."""
    task = experiment.task
    first = splits[task.eval_splits[0]]
    return {
        "metric": task.metric,
        "score": first["scores"][task.metric],
        "keep_ratio": first["cost"]["keep_ratio"],
        "splits": splits,
        "training": history,
        "train_seconds": round(sum(stage["seconds"] for stage in history), 3),
        "options_after_training": dict(reducer.config.options),
    }


def _in_units(report: Report, per_row: float) -> Callable[[int], None]:
    """Tells `report` of each number of rows as units of work."""
    return lambda rows: report(rows * per_row)


def _fresh(experiment: Experiment) -> TokenReducer:
    """The method on the pre-trained model, head and predictors drawn from the seed."""
    torch.manual_seed(experiment.seed)
    model = load_model(experiment.model, experiment.task)
    reducer = methods.create(experiment.method, model, **experiment.options)
    return reducer.to(experiment.setting.compute.device)  # type: ignore[arg-type]  # as in `TokenReducer.around`


def _load_start(
    experiment: Experiment, stage: Stage, number: int, reducer: TokenReducer, store: RunStore, report: Report
) -> None:
    """Bring the backbone's weights to what a stage starts from (or, for the shared fine-tuning, ends with)."""
    if experiment.method == "dense":
        return
    if stage.name == FINE_TUNE:
        reducer.model.load_state_dict(trained(experiment.dense(stage), store, report).model.state_dict())
    elif stage.start == "dense":
        reducer.model.load_state_dict(trained(experiment.dense(), store, report).model.state_dict())
    elif stage.start == "pretrained" and number > 0:
        torch.manual_seed(experiment.seed)
        reducer.model.load_state_dict(load_model(experiment.model, experiment.task).state_dict())


def _set_teacher(experiment: Experiment, stage: Stage, reducer: TokenReducer, store: RunStore, report: Report) -> None:
    """Give the stage the frozen model that it learns from."""
    if stage.teacher == "dense":
        reducer.set_teacher(trained(experiment.dense(), store, report).to(reducer.model.device).model)
    else:
        reducer.set_teacher(reducer.model if stage.teacher == "previous" else None)


def _evaluate_split(
    experiment: Experiment, split: str, reducer: TokenReducer, pad_id: int, report: Report, threshold: float | None
) -> dict[str, Any]:
    setting = experiment.setting
    result = evaluate(
        reducer,
        evaluation_features(experiment, split),
        experiment.task,
        pad_id,
        compute=setting.compute,
        on_batch=report,
        threshold=threshold,
    )
    return {"scores": result.scores, "cost": result.cost, "retention": result.retention}


def _save(reducer: TokenReducer, folder: Path) -> None:
    """Write the weights so that a killed command leaves a whole checkpoint or none."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    with writing(folder):
        try:
            reducer.save_pretrained(temporary)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
        except safetensors.SafetensorError as error:  # how safetensors says that the disk is full
            raise OSError(str(error)) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


# Work and cost ------------------------------------------------------------------------------------------------------


def units_per_row(stage: Stage) -> float:
    """Work of training on a row, in forward passes: 3 with a backward pass through the backbone, 1 without."""
    whole = any(pattern == "*" for group in stage.groups for pattern in group.patterns)
    return 3.0 if whole else 1.0


def work(experiment: Experiment, train_rows: int, eval_rows: int) -> float:
    """Forward passes of rows that a run takes, the shared fine-tuning not among them."""
    own = [stage for stage in experiment.stages if experiment.method == "dense" or stage.name != FINE_TUNE]
    trained_rows = sum(updates_of(stage, train_rows) * stage.batch_size * units_per_row(stage) for stage in own)
    return trained_rows + eval_rows


def starting_points(experiment: Experiment) -> list[Experiment]:
    """The dense runs that an experiment needs first."""
    if experiment.method == "dense":
        return []
    needed = [experiment.dense(stage) for stage in experiment.stages if stage.name == FINE_TUNE]
    if any("dense" in (stage.start, stage.teacher) for stage in experiment.stages):
        needed.append(experiment.dense())
    return needed
