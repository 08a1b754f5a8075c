"""Experiments run: each trained stage by stage and scored once, kept as a record and weights."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import torch

import methods
from benchmarks.checkpoints import Partial, UnusableCheckpoint, remove_left_behind, remove_partial
from benchmarks.data import Feature
from benchmarks.embedded import skimbench_home
from benchmarks.evaluate import evaluate
from benchmarks.experiment_data import evaluation_features, padding_id, training_features
from benchmarks.experiments import Experiment, stage_work, starting_points
from benchmarks.files import set_aside, writing
from benchmarks.models import load_model
from benchmarks.runs import Record, RunStore
from benchmarks.squad_scores import tuned_threshold
from benchmarks.team import PeerFailed, Team, current
from benchmarks.train import follow, train_stage
from methods import Stage, TokenReducer, Trial
from methods.recipes import FINE_TUNE

log = logging.getLogger(__name__)

Report = Callable[[float], None]
TRAINED_ANEW = (
    "%s: its weights were gone, and training it again came to a score of %.6g instead of %.6g (other code, or another "
    "processor); its record is that of the new weights, and what started from the old ones should be run again "
    "(`python -m benchmarks.runs verify` names it)"
)


def run(experiment: Experiment, store: RunStore, report: Report = lambda units: None) -> Record:
    """The record of an experiment, computing it if there is none; `report` is told units of work done."""
    record = store.run(experiment.config(), lambda: _compute(experiment, store, report))
    if record["status"] == "ok" and checkpoint_folder(experiment).is_dir():
        remove_left_behind(record["config_hash"])
    return record


def trained(experiment: Experiment, store: RunStore, report: Report = lambda units: None) -> TokenReducer:
    """The trained reducer of an experiment, in eval mode; trained again where the weights of its record are gone.

    Other code or another processor may train another model then: the record is replaced where its score is another one.
    """
    folder = checkpoint_folder(experiment)
    record = run(experiment, store, report)
    if record["status"] != "ok":
        raise RuntimeError(f"{experiment.label} failed before: {record['error']}")
    if (reducer := _load(folder, record)) is not None:
        return reducer
    with store.lock(experiment.config()):
        record = store.settled(experiment.config()) or record
        if (reducer := _load(folder, record, put_aside=True)) is None:
            again = store.again(experiment.config(), lambda: _compute(experiment, store, report))
            remove_partial(record["config_hash"])
            before, after = record["metrics"]["score"], again["metrics"]["score"]
            if before != after:
                log.warning(TRAINED_ANEW, experiment.label, after, before)
                store.write(experiment.config(), again)
    return reducer or methods.load(str(folder)).eval()


def _load(folder: Path, record: Record, *, put_aside: bool = False) -> TokenReducer | None:
    """The reducer in a folder, or None where there is none, none that can be read, or another than the record's."""
    if not folder.is_dir():
        return None
    try:
        reducer = methods.load(str(folder)).eval()
        return reducer if (reducer.config.facts or {}).get("score") == record["metrics"]["score"] else None
    except (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        if put_aside:
            reason, kept = str(error).splitlines()[0], set_aside(folder).name
            log.warning("%s: it cannot be read (%s); trained anew, the folder is kept as %s", folder, reason, kept)
        return None


def checkpoint_folder(experiment: Experiment) -> Path:
    """Where the trained weights of an experiment lie; an ignored folder, made again when needed."""
    return skimbench_home() / "checkpoints" / f"{experiment.task.name}-{experiment.method}-{experiment.config().hash}"


def _compute(experiment: Experiment, store: RunStore, report: Report) -> dict[str, Any]:
    """Train and score; goes on from the checkpoints of a killed process, where there are any."""
    if experiment.turned is not None:
        return _score_turned(experiment, store, report)
    with Partial.open(experiment.config().hash, store.opened_at if store.force else "") as partial:
        try:
            return _train_and_score(experiment, store, report, partial)
        except UnusableCheckpoint as error:
            partial.refuse(error)
            return _train_and_score(experiment, store, report, partial)


def _train_and_score(experiment: Experiment, store: RunStore, report: Report, partial: Partial) -> dict[str, Any]:
    task, setting = experiment.task, experiment.setting
    features, held_out = training_features(experiment)
    pad_id = padding_id(experiment.model)
    reducer = _fresh(experiment)

    def trial(candidate: TokenReducer) -> Trial:
        result = evaluate(candidate, held_out, task, pad_id, compute=setting.compute, on_batch=report)
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
            on_update=_in_units(report, stage_work(experiment, stage).passes),
            trial=trial if held_out else None,
            partial=partial,
            team=current() if setting.compute.processes > 1 else None,
            order=(experiment, number),
        )
        history.append(outcome)
        partial.finish_stage(number, reducer, history)
    scores = _score(experiment, reducer, held_out, report)
    _note(experiment, scores, reducer)
    _save(reducer, checkpoint_folder(experiment))
    return scores | {
        "starts": starts(experiment, store),
        "training": history,
        "train_seconds": round(sum(stage["seconds"] for stage in history), 3),
        "options_after_training": dict(reducer.config.options),
    }


def help_train(team: Team) -> int:
    """What a helper does: follow the leader's stages until it dismisses the team; returns the exit status."""
    for (experiment, number), snapshot in team.orders():
        try:
            with team.engaged():
                reducer = _fresh(experiment)
                if taught := snapshot.part("teacher"):
                    model = load_model(experiment.model, experiment.task)
                    model.load_state_dict(taught)
                    reducer.set_teacher(model.to(reducer.model.device))
                follow(
                    reducer,
                    experiment.stages[number],
                    training_features(experiment)[0],
                    padding_id(experiment.model),
                    seed=experiment.seed,
                    compute=experiment.setting.compute,
                    team=team,
                    snapshot=snapshot,
                )
        except PeerFailed:
            continue  # its own process has said why
        except Exception as error:
            print(f"process {team.rank}: {experiment.label}: {type(error).__name__}: {error}", file=sys.stderr)
    return 0


def _note(experiment: Experiment, metrics: dict[str, Any], reducer: TokenReducer) -> None:
    """Tell the reducer what its model card is to say."""
    split = experiment.task.eval_splits[0]
    cost = metrics["splits"][split]["cost"]
    unpadded = cost["padding"]["none"]
    reducer.note(
        task=experiment.task.name,
        split=split,
        metric=metrics["metric"],
        score=metrics["score"],
        keep_ratio=cost["keep_ratio"],
        gflops=2 * unpadded["method_gmacs_mean"],
        dense_gflops=2 * unpadded["dense_gmacs_mean"],
        padding="none",
        record=experiment.config().hash,
    )


def _score_turned(experiment: Experiment, store: RunStore, report: Report) -> dict[str, Any]:
    """Score the trained reducer at another setting of its sweep."""
    reducer = trained(experiment.trained_as(), store, report)
    reducer.to(experiment.setting.compute.device)  # type: ignore[arg-type]  # as in `TokenReducer.around`
    reducer.sweep_to(experiment.turned)
    scores = _score(experiment, reducer, training_features(experiment)[1], report)
    return scores | {"starts": starts(experiment, store), "options": dict(reducer.config.options)}


def starts(experiment: Experiment, store: RunStore) -> dict[str, float]:
    """The score of each run that an experiment starts from, by hash: which training of it that was."""
    found = {start.config().hash: store.settled(start.config()) for start in starting_points(experiment)}
    return {name: record["metrics"]["score"] for name, record in found.items() if record}


def _score(experiment: Experiment, reducer: TokenReducer, held_out: list[Feature], report: Report) -> dict[str, Any]:
    """What a record says of every split; the score is that of the first."""
    task, pad_id, compute = experiment.task, padding_id(experiment.model), experiment.setting.compute
    threshold = None
    if task.kind == "span_qa":
        held = evaluate(reducer, held_out, task, pad_id, compute=compute, on_batch=report)
        threshold = tuned_threshold(held.answers or [])
    splits = {
        split: _evaluate_split(experiment, split, reducer, pad_id, report, threshold) for split in task.eval_splits
    }
    first = splits[task.eval_splits[0]]
    return {
        "metric": task.metric,
        "score": first["scores"][task.metric],
        "keep_ratio": first["cost"]["keep_ratio"],
        "splits": splits,
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
    texts = {} if result.texts is None else {"texts": result.texts}
    return {"scores": result.scores, "cost": result.cost, "retention": result.retention} | texts


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
