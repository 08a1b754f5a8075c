"""Runs that depend on each other, several at a time: each finished run may call for more."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.places import Place, Report, RunDied, Workers, tell

if TYPE_CHECKING:
    from benchmarks.experiments import Experiment
    from benchmarks.runs import Record, RunStore

log = logging.getLogger(__name__)

_LOOK_S = 10.0  # how often to look whether there is room for more runs where none has finished


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run to make.

    Attributes:
        of: the method whose measured schedule the run follows, if it follows one.
        needs: keys of the jobs that come first.
        units: about how long it takes; the longest goes first.
        listed: it has a place in the table; else it is only what others start from.
        weights: others start from its weights, so that these are made even where its record is there already.
    """

    experiment: Experiment
    of: str = ""
    needs: frozenset[str] = frozenset()
    units: float = 0.0
    listed: bool = True
    weights: bool = False

    @functools.cached_property
    def key(self) -> str:
        """The hash of the run's configuration."""
        return self.experiment.config().hash

    @property
    def label(self) -> str:
        """For people."""
        use = f" (schedule of {self.of})" if self.of else "" if self.listed else " (start of others)"
        return f"{self.experiment.label}{use}"

    def settled(self, store: RunStore) -> Record | None:
        """The record that makes this job needless, or None."""
        from benchmarks.running import checkpoint_folder

        record = store.settled(self.experiment.config())
        absent = record is not None and record["status"] == "ok" and self.weights
        return None if absent and not checkpoint_folder(self.experiment).is_dir() else record


def execute(
    first: Iterable[Job],
    follow: Callable[[Job, Record], Iterable[Job]],
    store: RunStore,
    *,
    place: Place,
    report: Report = lambda units: None,
) -> Iterator[tuple[Job, Record]]:
    """Run `first` and what `follow` asks for after each finished run; yields runs as they finish.

    Of the jobs whose needs are met, the longest starts first. Jobs that the store has already cost nothing: no process
    is started for them. Where processes die (out of memory) or nodes are lost, what they ran is tried again, one run at
    a time where it is unknown which of them is to blame; a run that goes on losing its process is a failed one.

    Args:
        place: where they are computed.
        report: told units of work as they are done.
    Raises:
        UserError: bad input that a run met.
    """
    from benchmarks.checkpoints import remove_left_behind

    waiting = list(first)
    with _Running(place, report, store) as workers:
        while waiting or workers.running or workers.suspects:
            job = _longest_ready(waiting, workers) if workers.are_free else None
            if job is None:
                done = workers.wait()
            else:
                waiting.remove(job)
                record = job.settled(store)
                if record is None:
                    workers.start(job)
                    continue
                if record["status"] == "ok":
                    remove_left_behind(job.key)
                done = [(job, record)]
            for job, record in done:
                waiting.extend(follow(job, record))
                yield job, record


def _longest_ready(waiting: list[Job], workers: _Running) -> Job | None:
    pending = {job.key for job in (*waiting, *workers.running.values(), *workers.suspects)}
    ready = (job for job in waiting if not job.needs & pending)
    return max(ready, key=lambda job: job.units, default=None)


class _Running:
    """Jobs that run, on workers made when the first one starts."""

    def __init__(self, place: Place, report: Report, store: RunStore) -> None:
        self._place, self._report, self._store = place, report, store
        self._workers: Workers | None = None
        self._stack = ExitStack()
        self._lost: Counter[str] = Counter()  # how often, by key of the job
        self.running: dict[Future[Record], Job] = {}
        self.suspects: list[Job] = []  # one of these killed its process, so each runs alone
        self._one_alone = False

    def __enter__(self) -> _Running:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    @property
    def are_free(self) -> bool:
        """Whether one more job can start."""
        if self.suspects or self._one_alone:
            return False
        return self._workers is None or len(self.running) < self._workers.room()

    def start(self, job: Job) -> None:
        """Start a job."""
        if self._workers is None:
            self._workers = self._stack.enter_context(self._place.open(self._report))
        try:
            self.running[self._workers.submit(_work, job, self._store)] = job
        except BrokenProcessPool:  # a process has died since the last look; this job has not begun
            if self.running:
                self.suspects.append(job)
                return
            self._close()
            self.start(job)

    def _close(self) -> None:
        self._workers = None
        self._stack.close()

    def wait(self) -> list[tuple[Job, Record]]:
        """What has finished, after waiting a while for it; empty where nothing has, or a job is to be tried again."""
        if not self.running:
            self.start(self.suspects.pop())
            self._one_alone = True
        finished = wait(self.running, timeout=_LOOK_S, return_when=FIRST_COMPLETED).done
        if not finished:
            return []
        alone, self._one_alone = self._one_alone, False
        if any(isinstance(future.exception(), BrokenProcessPool) for future in finished):
            return self._all_lost(finished, alone)
        done = []
        for future in finished:
            job, error = self.running.pop(future), future.exception()
            if not isinstance(error, RunDied):
                done.append((job, future.result()))
            elif (record := self._lost_one(job, error)) is not None:
                done.append((job, record))
        return done

    def _all_lost(self, finished: set[Future[Record]], alone: bool) -> list[tuple[Job, Record]]:
        """Processes that end together: of several runs, each becomes a suspect; a single one is guilty."""
        broken = [job for future, job in self.running.items() if future not in finished or future.exception()]
        done = [(job, f.result()) for f, job in self.running.items() if f in finished and not f.exception()]
        self.running.clear()
        self._close()
        if alone or len(broken) == 1:
            return [*done, (broken[0], self._died(broken[0], RunDied()))]
        self.suspects += broken
        return done

    def _lost_one(self, job: Job, error: RunDied) -> Record | None:
        """Try a job again whose process ended on its own; its record if that happened too often."""
        self._lost[job.key] += 1
        if self._lost[job.key] >= error.tries:
            return self._died(job, error)
        log.warning("%s: %s; trying again", job.label, error)
        self.start(job)
        return None

    def _died(self, job: Job, error: RunDied) -> Record:
        """The record of a job that was lost for good."""
        from benchmarks.runs import make_record, utc_now

        config = job.experiment.config()
        with self._store.lock(config):
            if (finished := self._store.load(config)) is not None:
                return finished  # another command has computed it meanwhile
            record = make_record(config, started_at=utc_now(), wall_s=0.0, error=str(error))
            self._store.write(config, record)
        return record


def _work(job: Job, store: RunStore) -> Record:
    """What a worker does."""
    from benchmarks.running import run, trained

    if job.weights and store.settled(job.experiment.config()) is not None:
        trained(job.experiment, store, tell)
    return run(job.experiment, store, tell)
