"""Runs that depend on each other, several at a time: each finished run may call for more.

On a CPU, small models train faster as one single-threaded process per core than one after the other on all cores, and
do not slow down when another program takes a core.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.managers import SyncManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.experiments import Experiment
    from benchmarks.runs import Record, RunStore

Report = Callable[[float], None]
_POLL_S = 0.2


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


def available_cores() -> int:
    """CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def execute(
    first: Iterable[Job],
    follow: Callable[[Job, Record], Iterable[Job]],
    store: RunStore,
    *,
    jobs: int,
    report: Report = lambda units: None,
) -> Iterator[tuple[Job, Record]]:
    """Run `first` and what `follow` asks for after each finished run; yields runs as they finish.

    Of the jobs whose needs are met, the longest starts first. Jobs that the store has already cost nothing: no process
    is started for them. Where processes die (out of memory), what they ran is tried again, one run at a time; a run
    whose process dies then, too, is a failed one.

    Args:
        jobs: processes; 1 runs everything in this one.
        report: told units of work as they are done.
    Raises:
        UserError: bad input that a run met.
    """
    waiting = list(first)
    with _Workers(jobs, report, store) as workers:
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
                done = [(job, record)]
            for job, record in done:
                waiting.extend(follow(job, record))
                yield job, record


def _longest_ready(waiting: list[Job], workers: _Workers) -> Job | None:
    pending = {job.key for job in (*waiting, *workers.running.values(), *workers.suspects)}
    ready = (job for job in waiting if not job.needs & pending)
    return max(ready, key=lambda job: job.units, default=None)


class _Workers:
    """Where jobs run, made when the first one starts."""

    def __init__(self, jobs: int, report: Report, store: RunStore) -> None:
        self._jobs, self._report, self._store = jobs, report, store
        self._executor: Executor | None = None
        self._stack = ExitStack()
        self.running: dict[Future[Record], Job] = {}
        self.suspects: list[Job] = []  # one of these killed its process, so each runs alone
        self._one_alone = False

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    @property
    def are_free(self) -> bool:
        """Whether one more job can start."""
        return len(self.running) < self._jobs and not self.suspects and not self._one_alone

    def start(self, job: Job) -> None:
        """Start a job."""
        if self._executor is None:
            self._executor = self._stack.enter_context(_executor(self._jobs, self._report))
        self.running[self._executor.submit(_work, job, self._store)] = job

    def wait(self) -> list[tuple[Job, Record]]:
        """What has finished, after waiting for it; empty where a process died and its job is to be tried again."""
        if not self.running:
            self.start(self.suspects.pop())
            self._one_alone = True
        finished = wait(self.running, return_when=FIRST_COMPLETED).done
        alone, self._one_alone = self._one_alone, False
        if not any(isinstance(future.exception(), BrokenProcessPool) for future in finished):
            return [(self.running.pop(future), future.result()) for future in finished]
        broken = [job for future, job in self.running.items() if future not in finished or future.exception()]
        done = [(job, f.result()) for f, job in self.running.items() if f in finished and not f.exception()]
        self.running.clear()
        self._executor = None
        self._stack.close()
        if alone or len(broken) == 1:
            return [*done, (broken[0], self._died(broken[0]))]
        self.suspects += broken
        return done

    def _died(self, job: Job) -> Record:
        """The record of a job that killed its process, on its own."""
        from benchmarks.runs import MORE_MEMORY, make_record, utc_now

        config = job.experiment.config()
        reason = f"the process died (out of memory?); {MORE_MEMORY}"
        with self._store.lock(config):
            record = make_record(config, started_at=utc_now(), wall_s=0.0, error=reason)
            self._store.write(config, record)
        return record


# In the process that runs ---------------------------------------------------------------------------------------------

_tell: Report = lambda units: None  # noqa: E731  (told units of work; set per process)


def _start_worker(channel: Any, threads: int) -> None:
    global _tell
    import torch

    _end_with_parent()
    torch.set_num_threads(threads)
    _tell = channel.put


def _end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(job: Job, store: RunStore) -> Record:
    from benchmarks.running import run, trained

    if job.weights and store.settled(job.experiment.config()) is not None:
        trained(job.experiment, store, _tell)
    return run(job.experiment, store, _tell)


# Where it runs --------------------------------------------------------------------------------------------------------


class _Here(Executor):
    """Runs what is submitted at once, in this process."""

    def __init__(self, report: Report) -> None:
        global _tell
        _tell = report

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(call(*arguments, **named))
        return future


def _executor(jobs: int, report: Report) -> AbstractContextManager[Executor]:
    return _Here(report) if jobs == 1 else _processes(jobs, report)


class _Pool(ProcessPoolExecutor):
    """Worker processes that Ctrl-C does not reach: the process that started them ends them."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        if threading.current_thread() is not threading.main_thread():
            return super().submit(call, *arguments, **named)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # new processes inherit it
        try:
            return super().submit(call, *arguments, **named)
        finally:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _processes(jobs: int, report: Report) -> Iterator[Executor]:
    """Worker processes that share the cores; after an error or an interrupt, none of them goes on."""
    threads = max(1, available_cores() // jobs)
    context = multiprocessing.get_context("spawn")  # a forked process cannot use torch's threads
    with _reports(report) as channel:
        pool = _Pool(jobs, context, _start_worker, (channel, threads))
        try:
            yield pool
        except BaseException:
            workers = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.terminate()
            raise
        pool.shutdown()


@contextmanager
def _reports(report: Report) -> Iterator[Any]:
    """A queue for workers; a thread of this process hands what they put to `report`."""
    manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
    manager.start(_end_with_parent)
    with manager:
        channel = manager.Queue()
        ended = threading.Event()

        def forward() -> None:
            while not ended.is_set():
                try:
                    report(channel.get(timeout=_POLL_S))
                except queue.Empty:
                    continue
                except (EOFError, OSError):
                    return

        thread = threading.Thread(target=forward, daemon=True)
        thread.start()
        try:
            yield channel
        finally:
            ended.set()
            thread.join()
