"""Where runs are computed on this machine: in this process, or in several that share its cores.

On a CPU, small models train faster as one single-threaded process per core than one after the other on all cores, and
do not slow down when another program takes a core. A cluster is one more place: see `benchmarks/ray_place.py`.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing.managers import SyncManager
from typing import Any, Protocol

from benchmarks.runs import MORE_MEMORY

Report = Callable[[float], None]
_POLL_S = 0.2
_PROCESS_DIED = f"the process died (out of memory?); {MORE_MEMORY}"


class RunDied(Exception):
    """What ran a run is gone, and the run with it; the message says what was lost.

    Attributes:
        tries: how often a run may meet this before it has failed.
    """

    def __init__(self, reason: str = _PROCESS_DIED, tries: int = 2) -> None:
        super().__init__(reason)
        self.tries = tries


class Workers(Protocol):
    """Processes that are ready for runs."""

    def room(self) -> int:
        """Runs that fit at the same time, as things are now."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        """Start a call.

        Its future raises RunDied where its process ended before it did, BrokenProcessPool where another one's may have.
        """


class Place(Protocol):
    """Where the runs of a command are computed."""

    def open(self, report: Report) -> AbstractContextManager[Workers]:
        """Make workers; they tell `report` units of work, and none outlives the block."""


@dataclass(frozen=True)
class Local:
    """So many processes of this machine; 1 is this process itself."""

    jobs: int = 1

    def __str__(self) -> str:
        return f"{self.jobs} at a time"

    def open(self, report: Report) -> AbstractContextManager[Workers]:
        """See `Place`."""
        return _here(report) if self.jobs == 1 else _processes(self.jobs, report)


def available_cores() -> int:
    """CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


# In the process that runs ---------------------------------------------------------------------------------------------

_report: Report = lambda units: None  # noqa: E731


def tell(units: float) -> None:
    """Tell the command that so much work is done."""
    _report(units)


def set_report(report: Report) -> None:
    """Say whom `tell` tells, in this process."""
    global _report
    _report = report


def _start_worker(channel: Any, threads: int) -> None:
    import torch

    from benchmarks.checkpoints import know_own_code

    _end_with_parent()
    know_own_code()
    torch.set_num_threads(threads)
    set_report(channel.put)


def _end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# This machine ---------------------------------------------------------------------------------------------------------


class _Here:
    """Runs what is submitted at once, in this process."""

    def room(self) -> int:
        return 1

    def submit(self, call: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(call(*arguments))
        return future


@contextmanager
def _here(report: Report) -> Iterator[Workers]:
    set_report(report)
    yield _Here()


class _Pool(ProcessPoolExecutor):
    """Worker processes that Ctrl-C does not reach: the process that started them ends them."""

    def __init__(self, jobs: int, *others: Any) -> None:
        super().__init__(jobs, *others)
        self._jobs = jobs

    def room(self) -> int:
        return self._jobs

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        if threading.current_thread() is not threading.main_thread():
            return super().submit(call, *arguments, **named)
        with _interrupts_later():
            return super().submit(call, *arguments, **named)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C waits until the block has ended; processes that are started in it never hear of one."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    noted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))  # any thread may receive it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which new processes inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)
        if noted:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _processes(jobs: int, report: Report) -> Iterator[Workers]:
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
