"""Experiments: one method trained by its recipe and scored on one task, planned as data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import methods
from benchmarks.data import DataSource
from benchmarks.evaluate import BATCH_SIZE
from benchmarks.experiment_data import data_identity, held_out_rows
from benchmarks.models import ModelRef
from benchmarks.runs import RunConfig
from benchmarks.squad import MAX_ANSWER, MAX_QUESTION, N_BEST
from benchmarks.tasks import Task
from benchmarks.train import Compute, updates_of
from methods import Stage
from methods.recipes import FINE_TUNE, Work

KIND, TURNED_KIND = "finetune", "evaluate"


@dataclass(frozen=True, kw_only=True)
class DenseTraining:
    """A dense model trained on more rows, longer or at another rate than the methods that start from it.

    Attributes:
        samples: random training rows, held-out ones among them; None: as many as the methods have.
        epochs: passes over them; None: the recipe's.
        learning_rate: the highest of its schedule; None: the recipe's.
        keep: which of its epochs: the "best" on held-out training rows, the same ones in every run of the command, or
            the "last", where only a method that searches holds rows out, and starts from a dense model without them.
    """

    samples: int | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    keep: str = "last"

    @property
    def holds_out(self) -> bool:
        """Whether every run leaves out the rows that choose its epoch."""
        return self.keep == "best"

    def stages(self, stages: Iterable[Stage]) -> list[Stage]:
        """A recipe in which the dense model is trained so."""
        return [self._stage(stage) if stage.name == FINE_TUNE else stage for stage in stages]

    def _stage(self, stage: Stage) -> Stage:
        changes: dict[str, object] = {"select": self.keep} | ({"epochs": self.epochs} if self.epochs else {})
        if self.learning_rate is not None:
            changes["groups"] = tuple(replace(group, learning_rate=self.learning_rate) for group in stage.groups)
        return stage.but(**changes)

    def described(self) -> dict[str, float | str | None]:
        """For the configuration of runs."""
        rate = {} if self.learning_rate is None else {"dense_learning_rate": self.learning_rate}
        kept = {} if self.keep == "best" else {"dense_keep": self.keep}
        return {"dense_train_samples": self.samples, "dense_epochs": self.epochs, **rate, **kept}

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> DenseTraining | None:
        """What `described` has put into a configuration, None where it has not."""
        if "dense_epochs" not in extra:
            return None
        return cls(
            samples=extra["dense_train_samples"],
            epochs=extra["dense_epochs"],
            learning_rate=extra.get("dense_learning_rate"),
            keep=extra.get("dense_keep", "best"),
        )


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all runs of a command share.

    Attributes:
        dense: how the dense model is trained where it is not like the methods, on their rows.
        min_updates: of every stage that trains, for sets so small that the recipe's epochs would teach little.
    """

    recipe: str  # "paper" or "short"
    source: DataSource
    compute: Compute
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    dense: DenseTraining | None = None
    min_updates: int = 0

    @property
    def read_train_samples(self) -> int | None:
        """Training rows that are read, held-out ones among them; None: all."""
        return (self.dense and self.dense.samples) or self.max_train_samples


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run; `options` are complete, `stages` in order.

    With `held_out`, part of the training rows is kept from training: for a run that chooses on them, and for the dense
    model that it starts from, which must not have seen them either. With `turned`, the run trains nothing: it scores
    the trained reducer again at this setting of its method's sweep. `note` says in a label what is special.
    """

    setting: Setting
    model: ModelRef
    task: Task
    method: str
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    held_out: bool = False
    turned: Any = None
    note: str = ""

    @property
    def label(self) -> str:
        """For people: what is running."""
        title = f"{methods.lookup(self.method).traits.title}{f', {self.note},' if self.note else ''}"
        return f"{self.task.title}: {title} on {self.model.title}, seed {self.seed}"

    def trained_as(self) -> Experiment:
        """The experiment that trained what this one scores again."""
        return replace(self, turned=None)

    def config(self) -> RunConfig:
        """Everything that decides the result; reads the rows to name them."""
        if self.turned is not None:
            swept, config = methods.lookup(self.method).sweep, self.trained_as().config()
            assert swept is not None
            setting = {"trained": config.hash, "swept": swept.option, "setting": self.turned}
            return replace(config, kind=TURNED_KIND, extra={**config.extra, **setting})
        options_class = methods.lookup(self.method).options_class
        return RunConfig(
            kind=KIND,
            task=self.task.name,
            method=self.method,
            backbone=self.model.identity,
            data=data_identity(self),
            seed=self.seed,
            options=options_class(**self.options).recorded(),
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
                **(self.setting.dense.described() if self.setting.dense else {}),
                **_reading(self.task),
                **_sharing(self.setting.compute),
            },
        )

    @property
    def trained_samples(self) -> int | None:
        """The most rows that it trains on, of those that it may see; None: all of them."""
        return self.setting.max_train_samples if self.setting.dense and self.method != "dense" else None

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

    `held_out` keeps rows from training even if no stage needs them; span tasks always choose a threshold on them, and
    a dense model of its own training its epoch, unless its last is kept.
    """
    cls = methods.lookup(method)
    chosen = cls.task_options(task, setting.recipe) | dict(options or {})
    recipe = stages if stages is not None else tuple(cls.recipe_stages(task, setting.recipe, model.family))
    recipe = tuple(setting.dense.stages(recipe)) if setting.dense else recipe
    recipe = tuple(stage.but(min_updates=max(stage.min_updates, setting.min_updates)) for stage in recipe)
    return Experiment(
        setting=setting,
        model=model,
        task=task,
        method=method,
        seed=seed,
        options=chosen,
        stages=recipe,
        held_out=held_out
        or task.kind == "span_qa"
        or (setting.dense is not None and setting.dense.holds_out)
        or any(stage.holds_out for stage in recipe),
    )


def _reading(task: Task) -> dict[str, int]:
    """How long contexts are read, where they are."""
    if task.kind != "span_qa":
        return {}
    return {"stride": task.stride, "max_question": MAX_QUESTION, "n_best": N_BEST, "max_answer": MAX_ANSWER}


def _sharing(compute: Compute) -> dict[str, int]:
    """How many processes train together, where they are several: each draws its own dropout."""
    return {"processes": compute.processes} if compute.processes > 1 else {}


def supports(method: str, task: Task) -> str | None:
    """None if `method` can do `task`, else the reason why not."""
    unsupported = methods.lookup(method).traits.unsupported
    alone = unsupported.get("single_text") if len(task.text_columns) == 1 else None
    return unsupported.get(task.kind) or alone


# Work and cost ------------------------------------------------------------------------------------------------------


def stage_work(experiment: Experiment, stage: Stage) -> Work:
    """About how much a stage computes."""
    return methods.lookup(experiment.method).stage_work(stage, experiment.options)


def work(experiment: Experiment, train_rows: int, eval_rows: int) -> float:
    """Forward passes of rows that a run takes, the shared fine-tuning not among them.

    Args:
        train_rows: that are read, held-out ones among them.
    """
    held_out = held_out_rows(train_rows) if experiment.held_out else 0
    trained = min(train_rows - held_out, experiment.trained_samples or train_rows)
    total = float(eval_rows + (held_out if experiment.task.kind == "span_qa" else 0))
    for stage in experiment.stages if experiment.turned is None else ():
        if stage.name == FINE_TUNE and experiment.method != "dense":
            continue
        one = stage_work(experiment, stage)
        updates = updates_of(stage, trained)
        scored = one.trials + (math.ceil(stage.epochs) if stage.select == "best" else 0)
        total += updates * stage.batch_size * one.passes + scored * held_out
    return total


def starting_points(experiment: Experiment) -> list[Experiment]:
    """The runs that an experiment needs first: dense ones, or the one that it scores again."""
    if experiment.turned is not None:
        return [experiment.trained_as()]
    if experiment.method == "dense":
        return []
    needed = [experiment.dense(stage) for stage in experiment.stages if stage.name == FINE_TUNE]
    if any("dense" in (stage.start, stage.teacher) for stage in experiment.stages):
        needed.append(experiment.dense())
    return needed
