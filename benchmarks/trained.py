"""Trained reducers that earlier commands left, by task, method and run."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.errors import UserError

if TYPE_CHECKING:
    from benchmarks.models import ModelRef
    from benchmarks.tasks import Task

SIZES = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")  # what tells encoders apart
_CHECKPOINT = re.compile(r"(?P<task>.+)-(?P<method>[a-z0-9_+]+)-(?P<run>[0-9a-f]{12})")  # as running.checkpoint_folder


@dataclass(frozen=True)
class Checkpoint:
    """A trained reducer left by a command: task, method and run from the folder's name, and when it was written."""

    folder: Path
    task: str
    method: str
    run: str
    written: float


def checkpoints(
    home: Path, model: ModelRef, *, pair: bool, task: Task | None = None, recorded: Collection[str] = ()
) -> list[Checkpoint]:
    """The newest reducer of each method on one task, of those that fit.

    Args:
        home: see `benchmarks.embedded.skimbench_home`. model: the encoder that they were trained from.
        pair: whether two texts are given, or one.
        task: default: of those in `TASKS` the one with the newest reducer.
        recorded: runs that come before newer ones of the same method, as their records are at hand.
    Returns:
        In alphabetical order of methods, without the dense model and random dropping; empty if there is none.
    """
    from benchmarks.tasks import TASKS

    known = TASKS if task is None else {task.name: task}
    found, sizes = [], _sizes(model)
    for folder in (home / "checkpoints").glob("*"):
        match = _CHECKPOINT.fullmatch(folder.name)
        if match is None or match["task"] not in known or match["method"] in ("dense", "random"):
            continue
        if (len(known[match["task"]].text_columns) == 2) == pair and _is_from(folder, sizes):
            found.append(Checkpoint(folder, match["task"], match["method"], match["run"], folder.stat().st_mtime))
    if not found:
        return []
    chosen = max(found, key=lambda checkpoint: checkpoint.written).task
    own = sorted((one for one in found if one.task == chosen), key=lambda one: (one.run in recorded, one.written))
    newest = {checkpoint.method: checkpoint for checkpoint in own}
    return [newest[method] for method in sorted(newest)]


def _sizes(model: ModelRef) -> tuple[Any, ...]:
    """What tells encoders apart; of a hub model, from its configuration in the cache or on the hub."""
    import transformers

    from benchmarks.models import check_reachable

    check_reachable(model)
    try:
        config = transformers.AutoConfig.from_pretrained(model.source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"cannot read the configuration of the model {model.source}: {reason}") from error
    return tuple(getattr(config, name, None) for name in SIZES)


def _is_from(folder: Path, sizes: tuple[Any, ...]) -> bool:
    """Whether a reducer's backbone has these sizes."""
    import transformers

    try:
        own = json.loads((folder / "config.json").read_text(encoding="utf-8"))["backbone_config"]
        config = transformers.AutoConfig.for_model(**own)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return tuple(getattr(config, name, None) for name in SIZES) == sizes
