"""Half-done runs: what a training needs to go on, bit for bit, after its process was killed.

A run in training keeps files below `skimbench_home()`/checkpoints/partial/<config hash>: `stage`, how the last finished
stage ended, `epoch`, how far the present one is, and `search`, what its search has tried. Each is one safetensors file:
tensors by name, everything else as JSON in its header, with a SHA-256 over both. Teachers, data and the order of the
rows are made again from their own sources and seeds. The folder goes when the run has its record.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from benchmarks.embedded import skimbench_home
from benchmarks.environment import PROJECT_ROOT, git_state, version
from benchmarks.files import replacing, set_aside
from benchmarks.runs import utc_now
from methods import TokenReducer
from methods.config import build_options

log = logging.getLogger(__name__)

STAGE, EPOCH, SEARCH = "stage", "epoch", "search"
EVERY_S = 10.0  # an epoch that ends sooner after the last checkpoint is cheaper to repeat than to keep
Tensors = dict[str, Tensor]


class UnusableCheckpoint(Exception):
    """A checkpoint that cannot be gone on from; the message says why."""


@dataclass
class Snapshot:
    """Tensors by name ("weights/...", "optimizer/...") and plain data."""

    tensors: Tensors
    state: dict[str, Any]

    def part(self, name: str) -> Tensors:
        """The tensors called `name`/..., without that prefix."""
        return {
            key.removeprefix(f"{name}/"): tensor for key, tensor in self.tensors.items() if key.startswith(f"{name}/")
        }


def of_reducer(reducer: TokenReducer) -> Snapshot:
    """Weights, options and random state as they are now, on the CPU."""
    tensors = {f"weights/{name}": tensor for name, tensor in reducer.state_dict().items()}
    tensors["random/cpu"] = torch.get_rng_state()
    if reducer.model.device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    return Snapshot(tensors, {"options": dict(reducer.config.options)})


def into_reducer(snapshot: Snapshot, reducer: TokenReducer) -> None:
    """The opposite of `of_reducer`, in place.

    Raises:
        UnusableCheckpoint: its weights or options are not this reducer's.
    """
    try:
        restore_options(snapshot, reducer)
        reducer.load_state_dict(snapshot.part("weights"))
        torch.set_rng_state(snapshot.tensors["random/cpu"])
        if "random/cuda" in snapshot.tensors and reducer.model.device.type == "cuda":
            torch.cuda.set_rng_state(snapshot.tensors["random/cuda"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UnusableCheckpoint(f"it does not fit the method ({str(error).splitlines()[0]})") from error


def restore_options(snapshot: Snapshot, reducer: TokenReducer) -> None:
    """Only what the method had chosen; raises KeyError, TypeError or ValueError where it is not this method's."""
    checked = build_options(reducer.options_class, reducer.method_name, snapshot.state["options"])
    reducer.set_options(**vars(checked))


@dataclass
class Partial:
    """The checkpoints of one run; without a folder, nothing is kept and nothing found.

    Attributes:
        since: checkpoints written before this time (see `utc_now`) do not count.
    """

    folder: Path | None
    since: str = ""
    _saved_at: float = field(default_factory=time.monotonic)

    @classmethod
    @contextlib.contextmanager
    def open(cls, config_hash: str, since: str = "") -> Iterator[Partial]:
        """The run's checkpoints, for this process alone: where another one trains the same run, none are kept."""
        folder = partial_folder(config_hash)
        lock = _lock(config_hash)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except (OSError, filelock.Timeout) as error:
            log.warning(
                "%s: no checkpoints are kept of this run: %s", folder, getattr(error, "strerror", None) or error
            )
            yield cls(None)
            return
        try:
            yield cls(folder, since)
        finally:
            lock.release()

    def load(self, name: str) -> Snapshot | None:
        """The snapshot, or None; one that cannot be used is put aside, with one logged sentence."""
        if self.folder is None or not (path := self.folder / f"{name}.safetensors").is_file():
            return None
        try:
            snapshot = read_snapshot(path)
            if snapshot.state["made_by"] != made_by():
                raise UnusableCheckpoint("it was written by another version of the code or its libraries")
        except UnusableCheckpoint as error:
            self.refuse(error, name)
            return None
        return snapshot if snapshot.state["written_at"] >= self.since else None

    def refuse(self, reason: UnusableCheckpoint, *names: str) -> None:
        """Put the snapshots called `names`, or all, aside and say so."""
        assert self.folder is not None
        for path in (self.folder / f"{name}.safetensors" for name in names or (STAGE, EPOCH, SEARCH)):
            if path.is_file():
                kept = set_aside(path).name
                log.warning("%s: %s; trained anew from the step before, the file is kept as %s", path, reason, kept)

    def save(self, name: str, snapshot: Snapshot) -> bool:
        """Keep a snapshot in the place of the one before; a full disk costs the checkpoint, not the run."""
        if self.folder is None:
            return False
        path = self.folder / f"{name}.safetensors"
        self._saved_at = time.monotonic()
        try:
            write_snapshot(path, snapshot)
        except (OSError, safetensors.SafetensorError) as error:
            log.warning("cannot keep the checkpoint %s: %s; the run goes on without it", path, error)
            return False
        return True

    def is_due(self) -> bool:
        """Whether enough was done since the last checkpoint for another one."""
        return self.folder is not None and time.monotonic() - self._saved_at >= EVERY_S

    def finish_stage(self, number: int, reducer: TokenReducer, history: list[dict[str, Any]]) -> None:
        """Keep how the `number`-th stage (from 0) ended, and what the record will say of the stages so far."""
        snapshot = of_reducer(reducer)
        snapshot.state |= {"stages": number + 1, "history": history}
        if self.save(STAGE, snapshot) and self.folder is not None:
            for name in (EPOCH, SEARCH):
                (self.folder / f"{name}.safetensors").unlink(missing_ok=True)

    def resume(self, reducer: TokenReducer) -> tuple[int, list[dict[str, Any]]]:
        """Bring the reducer to the end of the last finished stage; returns the number of stages and their history."""
        snapshot = self.load(STAGE)
        if snapshot is None:
            return 0, []
        into_reducer(snapshot, reducer)
        return snapshot.state["stages"], snapshot.state["history"]


def partial_root() -> Path:
    """Where the folders of all runs in training lie."""
    return skimbench_home() / "checkpoints" / "partial"


def partial_folder(config_hash: str) -> Path:
    """Where the checkpoints of a run in training lie."""
    return partial_root() / config_hash


def is_in_use(config_hash: str) -> bool:
    """Whether a process trains this run right now."""
    lock = _lock(config_hash)
    try:
        with lock.acquire(timeout=0):
            return False
    except filelock.Timeout:
        return True


def _lock(config_hash: str) -> filelock.BaseFileLock:
    return filelock.FileLock(str(partial_root() / f"{config_hash}.lock"))


def remove_partial(config_hash: str) -> None:
    """Forget the checkpoints of a run; nothing happens where there are none."""
    folder = partial_folder(config_hash)
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)


def remove_left_behind(config_hash: str) -> None:
    """Forget the checkpoints of a finished run whose process was killed before it did; those in use stay."""
    folder = partial_folder(config_hash)
    if (folder.is_dir() or folder.with_name(f"{folder.name}.lock").is_file()) and not is_in_use(config_hash):
        remove_partial(config_hash)


# Files --------------------------------------------------------------------------------------------------------------


def write_snapshot(path: Path, snapshot: Snapshot) -> None:
    """Write one file, whole or not at all; raises OSError."""
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in snapshot.tensors.items()}
    state = json.dumps({**snapshot.state, "made_by": made_by(), "written_at": utc_now()})
    with replacing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, {"state": state, "sha256": _digest(tensors, state)})


def read_snapshot(path: Path) -> Snapshot:
    """Read and check what `write_snapshot` wrote.

    Raises:
        UnusableCheckpoint: the file is cut off, changed or none of ours.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        state = json.loads(header["state"])
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise UnusableCheckpoint(f"it cannot be read ({error})") from error
    if _digest(tensors, header["state"]) != header.get("sha256"):
        raise UnusableCheckpoint("its content does not have its SHA-256")
    return Snapshot(tensors, state)


def _digest(tensors: Tensors, state: str) -> str:
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def know_own_code() -> None:
    """Read the revision and the code's digest now, before the checkout changes under a process that has begun."""
    git_state()
    made_by()


@functools.cache
def made_by() -> str:
    """What has to be the same for a training to go on bit for bit: this project's code and its libraries."""
    digest = hashlib.sha256()
    for package in ("methods", "benchmarks"):
        for path in sorted((PROJECT_ROOT / package).glob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return f"{digest.hexdigest()[:12]} torch {version('torch')} transformers {version('transformers')}"
