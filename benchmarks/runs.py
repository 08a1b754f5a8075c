"""Runs as data: what decides a result, its hash, and a store with one JSON record per run.

A run is a `RunConfig`; the SHA-256 of its canonical JSON names its record, so finished work is never repeated and
every command resumes. `RunStore.run` is the whole protocol: look, lock, look again, compute, write. A record is written
under a temporary name and renamed when complete, so a killed process leaves the old record or none, never half of one.
"""

import contextlib
import dataclasses
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from benchmarks.environment import PROJECT_ROOT, environment, git_state
from benchmarks.errors import UserError
from benchmarks.files import replacing, set_aside, writing
from benchmarks.plain import canonical_json, content_hash, plain

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

SCHEMA = 1
RESULTS: Path = PROJECT_ROOT / "results"
Record = dict[str, Any]
RECORD_KEYS = (
    "schema", "config_hash", "kind", "status", "error", "config", "metrics",
    "git", "environment", "started_at", "wall_s",
)  # fmt: skip

MORE_MEMORY = "use fewer --jobs, shorter texts or a larger machine"

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_ABSOLUTE_PATH = re.compile(r'"((?:/|~/|[A-Za-z]:\\\\)[^"]*)"')  # in canonical JSON


class CorruptRecord(Exception):
    """A file in a record's place that is none: cut off, edited by hand, or of a schema this version does not read."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}; rerun its command to compute it anew (the file is kept as *.corrupt)")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a result, defaults written out; treat the containers as read-only.

    Raises ValueError or TypeError where a value is no plain data, is an absolute path, or is unfit for a file name.
    """

    kind: str  # what is done: "dense_checkpoint", "train", "evaluate", "latency", ...
    task: str
    method: str
    backbone: str  # hub name, or a content id of the checkpoint ("sha256:..."); never a path
    data: Mapping[str, Any]  # where the rows come from: source, rows per split, sha256 of the rows or hub revision
    seed: int | None
    options: Mapping[str, Any] = field(default_factory=dict)  # of the method, defaults written out
    recipe: str | None = None  # the training recipe's name
    stages: Sequence[Any] = ()  # its stages in order: dataclasses or mappings
    max_length: int | None = None  # tokens, special ones included
    max_train_samples: int | None = None  # None: all
    dtype: str = "float32"
    device: str = "cpu"  # the class, "cpu" or "cuda"; the model's name is in the record's environment
    extra: Mapping[str, Any] = field(default_factory=dict)  # what only this kind has: batch size, padding, ...

    def __post_init__(self) -> None:
        for name in ("kind", "task", "method"):
            if not NAME.fullmatch(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}; use letters, digits, '_', '-', '+' and '.'")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device is {self.device!r}; use 'cpu' or 'cuda'")
        for item in dataclasses.fields(self):
            object.__setattr__(self, item.name, plain(getattr(self, item.name), item.name))
        if path := _ABSOLUTE_PATH.search(canonical_json(self)):
            raise ValueError(f"a run does not depend on where files lie, but its configuration names {path[1]}")

    @property
    def hash(self) -> str:
        """First 12 hex digits of the SHA-256 over the canonical JSON of all fields."""
        return content_hash(self)

    def __hash__(self) -> int:
        return int(self.hash, 16)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as a new plain dict, as they stand in a record under "config"."""
        return plain(self, "config")


def read_record(path: Path) -> Record:
    """Read and check one record of any status; raises CorruptRecord, or an OSError where there is no file."""
    try:
        record = plain(json.loads(path.read_text(encoding="utf-8")), "record")
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError) as error:
        raise CorruptRecord(path, f"not readable as JSON ({error})") from error
    if not isinstance(record, dict):
        raise CorruptRecord(path, "not a JSON object")
    if record.get("schema") != SCHEMA:
        raise CorruptRecord(path, f"has schema {record.get('schema')!r}, and this version reads {SCHEMA}")
    if missing := [key for key in RECORD_KEYS if key not in record]:
        raise CorruptRecord(path, f"lacks {', '.join(missing)}")
    if record["status"] not in ("ok", "failed") or not isinstance(record["started_at"], str):
        raise CorruptRecord(path, "has no valid status or started_at")
    if content_hash(record["config"]) != record["config_hash"]:
        raise CorruptRecord(path, "its config does not have its config_hash, so one of them was edited")
    return record


def make_record(
    config: RunConfig,
    *,
    started_at: str,
    wall_s: float,
    metrics: Mapping[str, Any] | None = None,
    error: str | None = None,
) -> Record:
    """Build a record; its status is "failed" if `error` is given, else "ok".

    Args:
        started_at: UTC, ISO 8601, as `utc_now` gives it. wall_s: seconds of wall clock.
    Raises:
        ValueError: for nan or infinity in the metrics (a missing value is None).
    """
    described = environment()
    return {
        "schema": SCHEMA,
        "config_hash": config.hash,
        "kind": config.kind,
        "status": "ok" if error is None else "failed",
        "error": error,
        "config": config.as_dict(),
        "metrics": plain(metrics or {}, "metrics"),
        "git": described.pop("git"),
        "environment": described,
        "started_at": started_at,
        "wall_s": round(wall_s, 3),
    }


def utc_now() -> str:
    """Return the present time, UTC, ISO 8601 with microseconds: such strings sort by time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True)
class RunStore:
    """The records below `root`/runs. Safe to use from several processes at once; may be sent to a worker by pickle.

    A failed run is tried again by the next command unless `retry_failed` is False, and never twice by one command.
    With `force`, only records begun after this store was made count, so one command computes a shared run once.
    """

    root: Path
    force: bool = False
    retry_failed: bool = True
    opened_at: str = field(default_factory=utc_now)

    @classmethod
    def open(cls, results: Path = RESULTS, *, force: bool = False, retry_failed: bool = True) -> "RunStore":
        """Open a command's store: `results`, or its scratch folder if the tree is dirty."""
        return cls(results / "scratch" if git_state()["dirty"] else results, force, retry_failed)

    @property
    def is_scratch(self) -> bool:
        """Whether records go to a scratch folder, which no published table reads."""
        return self.root.name == "scratch"

    def path(self, config: RunConfig) -> Path:
        """Return where the record of `config` lies, whether or not it exists."""
        return self.root / "runs" / config.kind / config.task / f"{config.method}-{config.hash}.json"

    def load(self, config: RunConfig) -> Record | None:
        """Return the finished record (status ok) or None; an unreadable file is reported and counts as none."""
        try:
            record = self._read(config)
        except CorruptRecord as error:
            log.warning("%s", error)
            return None
        return record if record and record["status"] == "ok" else None

    def settled(self, config: RunConfig) -> Record | None:
        """Return the record, ok or failed, that makes computing `config` needless under this store's rules, or None."""
        try:
            record = self._read(config)
        except CorruptRecord:  # reported by `write`, which moves it aside
            return None
        if record is None or record["started_at"] >= self.opened_at:
            return record
        return record if not self.force and (record["status"] == "ok" or not self.retry_failed) else None

    def run(self, config: RunConfig, compute: Callable[[], Mapping[str, Any]]) -> Record:
        """Return the record of `config`, computing and writing it if need be; a second process waits and reads.

        `compute` returns the metrics (nan and infinity are errors). What it raises becomes a record of status "failed",
        except UserError and what is no Exception (an interrupt), which pass through and write nothing.
        """
        if (record := self.settled(config)) is not None:
            return record
        with self.lock(config):
            if (record := self.settled(config)) is None:
                record = _execute(config, compute)
                self.write(config, record)
        return record

    def again(self, config: RunConfig, compute: Callable[[], Mapping[str, Any]]) -> Record:
        """A record of computing `config` once more, which is not written; whoever calls holds the run's lock.

        Raises:
            RuntimeError: it failed.
        """
        record = _execute(config, compute)
        if record["status"] != "ok":
            raise RuntimeError(record["error"])
        return record

    def write(self, config: RunConfig, record: Record) -> Path:
        """Replace the record of `config` at once and durably; a corrupt file in its place is kept as *.corrupt.

        Raises ValueError if the record belongs to another configuration or holds nan; UserError if the folder refuses.
        """
        if record["config_hash"] != config.hash:
            raise ValueError(f"the record has config_hash {record['config_hash']}, the configuration {config.hash}")
        path = self.path(config)
        text = json.dumps(plain(record, "record"), indent=2, allow_nan=False) + "\n"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._set_corrupt_aside(config)
            with replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return path

    @contextlib.contextmanager
    def lock(self, config: RunConfig) -> Iterator[None]:
        """Hold the run's lock, waiting while another process has it.

        The operating system holds the lock (flock) and frees it when its process dies, so none is ever stale; the empty
        files in `root`/.locks mean nothing by themselves. Raises UserError if the folder is not writable.
        """
        path = self.root / ".locks" / f"{config.hash}.lock"
        lock = filelock.FileLock(str(path))
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.path(config).parent.mkdir(parents=True, exist_ok=True)  # better refused now than after computing
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                log.warning("waiting for another process that computes %s", self.path(config))
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _read(self, config: RunConfig) -> Record | None:
        path = self.path(config)
        try:
            record = read_record(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if record["config_hash"] != config.hash:
            raise CorruptRecord(path, f"holds the run {record['config_hash']}")
        return record

    def _set_corrupt_aside(self, config: RunConfig) -> None:
        try:
            self._read(config)
        except CorruptRecord as error:
            path = self.path(config)
            kept = set_aside(path).name
            log.warning("%s: %s; computed anew, the old file is kept as %s", path, error.reason, kept)


def _execute(config: RunConfig, compute: Callable[[], Mapping[str, Any]]) -> Record:
    """Compute and time one run; an exception becomes a failed record."""
    started_at, start = utc_now(), time.perf_counter()
    metrics, failure = None, None
    try:
        metrics = plain(compute(), "metrics")
    except UserError:
        raise
    except Exception as error:
        failure = _without_places(f"{type(error).__name__}: {error}{_advice(error)}")
        log.warning("%s of %s on %s failed: %s", config.kind, config.method, config.task, failure)
        log.debug("where it failed", exc_info=True)
    wall_s = time.perf_counter() - start
    return make_record(config, started_at=started_at, wall_s=wall_s, metrics=metrics, error=failure)


def _advice(error: Exception) -> str:
    """What to do about a lack of memory; torch's error for a GPU is recognised by its name, without importing torch."""
    short = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return f"; {MORE_MEMORY}" if short else ""


def _without_places(text: str) -> str:
    """Replace this machine's folders in a message: records are published."""
    for folder, name in ((str(PROJECT_ROOT), "."), (sys.prefix, "PYTHON"), (str(Path.home()), "~")):
        if len(folder) > 1:
            text = text.replace(folder, name)
    return text


def load_runs(root: Path = RESULTS) -> "pd.DataFrame":
    """Return one row per readable record below `root`/runs, ok or failed, sorted by path.

    Nested fields are flattened with dots ("config.options.temperature", "metrics.f1"); "path" is relative to `root`.
    `.attrs["unreadable"]` lists (path, reason) of the files that are no records.
    """
    import pandas as pd

    rows: list[Record] = []
    unreadable: list[tuple[str, str]] = []
    for path in sorted((root / "runs").rglob("*.json")):
        place = path.relative_to(root).as_posix()
        try:
            rows.append({"path": place, **read_record(path)})
        except CorruptRecord as error:
            unreadable.append((place, error.reason))
    frame = pd.json_normalize(rows) if rows else pd.DataFrame(columns=["path", *RECORD_KEYS])
    frame.attrs["unreadable"] = unreadable
    return frame


if __name__ == "__main__":
    from benchmarks.cli import run_command
    from benchmarks.runs_command import main

    sys.exit(run_command(main))
