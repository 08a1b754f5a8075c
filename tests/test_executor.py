"""The order of jobs, and processes that die: only the run that killed its process is lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from benchmarks import places, running, runs
from benchmarks.errors import UserError
from benchmarks.executor import Job, _Running, execute
from benchmarks.places import Local, RunDied, _Pool
from benchmarks.ray_place import RayCluster
from benchmarks.runs import RunConfig, RunStore
from tests.test_runs import config, described


@dataclass(frozen=True)
class Fake:
    """An experiment that notes its start and end and, if `deadly`, kills its process."""

    number: int
    notes: Path
    deadly: bool = False
    pause_s: float = 0.0
    method = "ltp"

    @property
    def label(self) -> str:
        return f"run {self.number}"

    def config(self) -> RunConfig:
        return config(seed=self.number)

    def compute(self) -> dict:
        self.note("starts")
        time.sleep(self.pause_s)
        if self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        self.note("ends")
        return {"score": self.number}

    def note(self, what: str) -> None:
        with self.notes.open("a") as notes:
            notes.write(f"{self.number} {what}\n")


@pytest.fixture(autouse=True)
def forked(monkeypatch, tmp_path):
    """Processes that need not import anything; runs that compute what the fake says."""

    @contextmanager
    def processes(jobs, report):
        with _Pool(jobs, multiprocessing.get_context("fork")) as pool:
            yield pool

    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path))
    monkeypatch.setattr(runs, "environment", described)
    monkeypatch.setattr(places, "_processes", processes)
    monkeypatch.setattr(running, "run", lambda fake, store, tell: store.run(fake.config(), fake.compute))


def finished(first, store, jobs, follow=lambda job, record: ()) -> dict[int, str]:
    return {job.experiment.number: record["status"] for job, record in execute(first, follow, store, place=Local(jobs))}


def order(notes: Path) -> list[str]:
    return notes.read_text().splitlines()


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_job_starts_when_what_it_needs_has_ended(tmp_path, jobs):
    notes = tmp_path / "notes"
    dense = [Job(experiment=Fake(n, notes, pause_s=0.05)) for n in (1, 2)]
    needs = [frozenset({dense[0].key}), frozenset(job.key for job in dense)]
    others = [Job(experiment=Fake(3 + i, notes), needs=keys, units=9.0) for i, keys in enumerate(needs)]
    assert finished([*others, *dense], RunStore(tmp_path / "r"), jobs) == dict.fromkeys((1, 2, 3, 4), "ok")
    said = order(notes)
    assert said.index("3 starts") > said.index("1 ends") and said.index("4 starts") > said.index("2 ends")


def test_the_longest_ready_job_starts_first(tmp_path):
    notes = tmp_path / "notes"
    jobs = [Job(experiment=Fake(n, notes), units=units) for n, units in ((1, 2.0), (2, 7.0), (3, 4.0))]
    last = Job(experiment=Fake(4, notes), units=99.0, needs=frozenset({jobs[2].key}))
    finished([*jobs, last], RunStore(tmp_path / "r"), 1)
    assert [line[0] for line in order(notes) if line.endswith("starts")] == ["2", "3", "4", "1"]


def test_followers_run_and_settled_jobs_start_nothing(tmp_path):
    notes, store = tmp_path / "notes", RunStore(tmp_path / "r")

    def follow(job, record):
        return [Job(experiment=Fake(7, notes))] if job.experiment.number == 1 else []

    first = [Job(experiment=Fake(1, notes))]
    assert finished(first, store, 2, follow) == {1: "ok", 7: "ok"}
    before = order(notes)
    assert finished(first, store, 2, follow) == {1: "ok", 7: "ok"} and order(notes) == before


def test_a_start_without_its_weights_is_made_again(tmp_path, monkeypatch):
    notes, store = tmp_path / "notes", RunStore(tmp_path / "r")
    weights = tmp_path / "weights"
    monkeypatch.setattr(running, "checkpoint_folder", lambda fake: weights)
    monkeypatch.setattr(running, "trained", lambda fake, store, tell: fake.compute() and weights.mkdir())
    plain, start = Job(experiment=Fake(1, notes)), Job(experiment=Fake(1, notes), weights=True)
    for job, times in ((plain, 1), (plain, 1), (start, 2), (start, 2)):
        finished([job], store, 1)
        assert len(order(notes)) == 2 * times


@pytest.mark.parametrize("deadly", [1, 3, 5])  # the last one dies when nothing else waits
def test_only_the_run_that_kills_its_process_fails(tmp_path, deadly):
    """Out of memory, as the kernel ends it: the others are tried again, the guilty one says what to do."""
    notes, store = tmp_path / "notes", RunStore(tmp_path / "r")
    jobs = [Job(experiment=Fake(n, notes, deadly=n == deadly, pause_s=0.05)) for n in range(1, 6)]
    expected = {n: "failed" if n == deadly else "ok" for n in range(1, 6)}
    assert finished(jobs, store, 2) == expected
    record = runs.read_record(store.path(jobs[deadly - 1].experiment.config()))
    assert "the process died (out of memory?); use fewer --jobs" in record["error"]
    assert finished(jobs, RunStore(store.root, retry_failed=False), 2) == expected
    assert len(list(store.root.rglob("*.json"))) == 5


@pytest.mark.parametrize("times", [1, 2])
def test_processes_that_die_between_two_starts_fail_no_run(tmp_path, monkeypatch, times):
    """`submit` itself says so then, once before anything runs, or beside a run that is lost, too."""
    submit, calls = _Pool.submit, []

    def breaking(self, *arguments):
        calls.append(1)
        if len(calls) == times:
            raise BrokenProcessPool("a process was terminated abruptly")
        return submit(self, *arguments)

    monkeypatch.setattr(_Pool, "submit", breaking)
    jobs = [Job(experiment=Fake(n, tmp_path / "notes")) for n in (1, 2, 3)]
    assert finished(jobs, RunStore(tmp_path / "r"), 2) == dict.fromkeys((1, 2, 3), "ok")


def test_a_lost_run_that_another_command_has_finished_is_not_a_failed_one(tmp_path):
    store, job = RunStore(tmp_path / "r"), Job(experiment=Fake(1, tmp_path / "notes"))
    record = store.run(job.experiment.config(), job.experiment.compute)
    with _Running(Local(1), lambda units: None, store) as workers:
        assert workers._died(job, RunDied()) == record
    assert store.load(job.experiment.config()) == record


def test_a_cluster_without_the_extra_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    place = RayCluster(address="local", cpus=1.0, gpus=0.0)
    with pytest.raises(UserError, match=r"needs the extra 'ray': pip install -c constraints.txt -e '\.\[ray\]'"):
        list(execute([Job(experiment=Fake(1, tmp_path))], lambda job, record: (), RunStore(tmp_path), place=place))


def test_a_gpu_without_memory_says_what_to_do(tmp_path):
    def compute():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    record = RunStore(tmp_path).run(config(), compute)
    assert record["status"] == "failed"
    assert record["error"].endswith("Tried to allocate 2.00 GiB; use fewer --jobs, shorter texts or a larger machine")


def test_an_error_of_one_run_is_its_record(tmp_path, monkeypatch):
    notes, store = tmp_path / "notes", RunStore(tmp_path / "r")

    def compute(fake):
        raise MemoryError("cannot allocate 9 GiB")

    good, bad = Job(experiment=Fake(1, notes)), Job(experiment=Fake(2, notes))
    monkeypatch.setattr(
        running,
        "run",
        lambda fake, store, tell: store.run(
            fake.config(), lambda: fake.compute() if fake.number == 1 else compute(fake)
        ),
    )
    assert finished([bad, good], store, 2) == {1: "ok", 2: "failed"}
    error = runs.read_record(store.path(bad.experiment.config()))["error"]
    assert error == "MemoryError: cannot allocate 9 GiB; use fewer --jobs, shorter texts or a larger machine"


class Losing:
    """A place whose workers lose a run so many times before they finish it."""

    def __init__(self, times: int, tries: int) -> None:
        self.left, self.tries, self.started = times, tries, 0

    @contextmanager
    def open(self, report):
        yield self

    def room(self) -> int:
        return 1

    def submit(self, call, *arguments) -> Future:
        future: Future = Future()
        self.started, self.left = self.started + 1, self.left - 1
        if self.left >= 0:
            future.set_exception(RunDied("its node was lost", self.tries))
        else:
            future.set_result(call(*arguments))
        return future


@pytest.mark.parametrize(("times", "status"), [(0, "ok"), (2, "ok"), (3, "failed"), (9, "failed")])
def test_a_run_that_is_lost_is_tried_again_so_often_and_no_more(tmp_path, times, status):
    place, store = Losing(times, tries=3), RunStore(tmp_path / "r")
    job = Job(experiment=Fake(1, tmp_path / "notes"))
    outcome = [record for _, record in execute([job], lambda job, record: (), store, place=place)]
    assert [record["status"] for record in outcome] == [status] and place.started == min(times + 1, 3)
    record = runs.read_record(store.path(job.experiment.config()))
    assert record["error"] == (None if status == "ok" else "its node was lost")


def _interrupted_alone() -> None:
    """Ctrl-C, as it reaches a worker."""
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no masks of signals")
def test_an_interrupt_while_a_run_is_handed_out_comes_after_it(monkeypatch):
    """The moment in which processes are started, which Ctrl-C must not reach, must not swallow it either."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with _Pool(1, multiprocessing.get_context("fork")) as pool:
            assert pool.submit(_interrupted_alone).result(timeout=60) is None  # the worker lives on
            assert pool.submit(os.getpid).result(timeout=60) != os.getpid()
            done: list[int] = []

            def interrupted(self, *call):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)
                done.append(1)

            monkeypatch.setattr(places.ProcessPoolExecutor, "submit", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.submit(os.getpid)
            assert done == [1] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
            assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.signal(signal.SIGINT, before)
