"""Runs that depend on each other, several at a time: each finished run may call for more.

On a CPU, small models train faster as one single-threaded process per core than one after the other on all cores, and
do not slow down when another program takes a core.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.experiments import Experiment
    from benchmarks.runs import Record, RunStore

Report = Callable[[float], None]
_POLL_S = 0.2


@dataclass(frozen=True)
class Job:
    """A run to make; `of` names the method whose measured schedule it follows, if it follows one."""

    experiment: Experiment
    of: str = ""

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.experiment.label}{f' (schedule of {self.of})' if self.of else ''}"


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

    Runs that the store has already cost nothing: no process is started for them.

    Args:
        jobs: processes; 1 runs everything in this one.
        report: told units of work as they are done.
    Raises:
        UserError: bad input that a run met. RuntimeError: a process died.
    """
    waiting = deque(first)
    running: dict[Future[Record], Job] = {}
    executor: Executor | None = None
    with ExitStack() as stack:
        while waiting or running:
            while waiting and not (jobs == 1 and running):
                job = waiting.popleft()
                record = store.settled(job.experiment.config())
                if record is not None:
                    waiting.extend(follow(job, record))
                    yield job, record
                    continue
                executor = executor or stack.enter_context(_executor(jobs, report))
                running[executor.submit(_work, job.experiment, store)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                record = _result(job, future)
                waiting.extend(follow(job, record))
                yield job, record


def _result(job: Job, future: Future[Record]) -> Record:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(f"the process of {job.label} died (out of memory?); use fewer --jobs") from error


# In the process that runs ---------------------------------------------------------------------------------------------

_tell: Report = lambda units: None  # noqa: E731  (told units of work; set per process)


def _start_worker(channel: Any, threads: int) -> None:
    global _tell
    import torch

    torch.set_num_threads(threads)
    _tell = channel.put


def _work(experiment: Experiment, store: RunStore) -> Record:
    from benchmarks.experiments import run

    return run(experiment, store, _tell)


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


@contextmanager
def _processes(jobs: int, report: Report) -> Iterator[Executor]:
    """Worker processes that share the cores; after an error or an interrupt, none of them goes on."""
    threads = max(1, available_cores() // jobs)
    context = multiprocessing.get_context("spawn")  # a forked process cannot use torch's threads
    with _reports(report) as channel:
        pool = ProcessPoolExecutor(jobs, context, _start_worker, (channel, threads))
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
    with multiprocessing.get_context("spawn").Manager() as manager:
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
