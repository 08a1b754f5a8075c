"""Commands killed, interrupted, run together or refused by the disk: finished work stays, nothing is doubled."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pandas as pd
import pytest

from benchmarks import checkpoints, experiment_data, files, running
from benchmarks.cli import run_command
from benchmarks.environment import PROJECT_ROOT
from benchmarks.glue import main
from benchmarks.places import _end_with_parent
from benchmarks.runs import RunStore, read_record
from tests.small_world import write_model, write_sentences

KILLS = 20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads the clock of another process")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Arguments of a small sweep with starting runs, searches and twins, and the folder of an undisturbed one."""
    root = tmp_path_factory.mktemp("kills")
    model, data = write_model(root / "model"), write_sentences(root / "data", rows=64)
    arguments = ["--profile", "local", "--model", str(model), "--data-dir", str(data), "--tasks", "mood"]
    arguments += ["--methods", "power_bert", "transkimmer", "random", "--device", "cpu", "--quiet", "--jobs", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "EVERY_S", 0.0)
        patch.setenv("SKIMBENCH_HOME", str(root / "undisturbed" / "home"))
        started = time.process_time()
        assert run_command(main, [*arguments, "--results", str(root / "undisturbed")]) == 0
        yield arguments, root / "undisturbed", time.process_time() - started


@pytest.fixture
def sweep(world, tmp_path, monkeypatch):
    """Arguments of the same sweep in folders of its own."""
    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path / "home"))
    return [*world[0], "--results", str(tmp_path)]


def in_child(call: Callable[[], int], output: Path) -> int:
    """Start `call` in a forked process, its output in a file; returns the process id."""
    child = os.fork()
    if child:
        return child
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where tests run in the background
        with output.open("w") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            sys.stdout = sys.stderr = stream  # pytest has its own in their place
            status = call()
    finally:
        os._exit(status if "status" in locals() else 99)


def processor_seconds(process: int) -> float:
    """What a process has used so far: moments counted so do not depend on how busy the machine is."""
    return time.clock_gettime((~process << 3) | 2)  # as clock_getcpuclockid(3)


def killed_after(process: int, seconds: float) -> int:
    """Kill a process after so much processor time; returns its exit status (negative: a signal)."""
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if processor_seconds(process) >= seconds:
            os.kill(process, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        time.sleep(0.001)


def records(root: Path) -> dict[str, str]:
    """Text of every record by its name; each is whole, readable and the only one of its run."""
    paths = [path for path in root.rglob("finetune/**/*.json") if not path.name.startswith(".")]
    hashes = Counter(read_record(path)["config_hash"] for path in paths)
    assert not [key for key, times in hashes.items() if times > 1]
    return {path.name: path.read_text() for path in paths}


def results(root: Path) -> dict[str, dict]:
    """Metrics of every run, but for what a clock said."""
    found = {name: json.loads(text)["metrics"] for name, text in records(root).items()}
    for metrics in found.values():
        metrics.pop("train_seconds")
        for stage in metrics["training"]:
            stage.pop("seconds")
    return found


def table(root: Path) -> pd.DataFrame:
    frame = pd.read_csv(next(root.rglob("glue-local.csv")), keep_default_na=False)
    return frame.drop(columns=[name for name in frame.columns if "second" in name])


@contextlib.contextmanager
def held(undisturbed: Path, root: Path) -> Iterator[None]:
    """Hold the locks of the sweep's runs, but for dense ones, as another command does that computes them."""
    folder = RunStore.open(root).root / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as locks:
        for record in map(json.loads, records(undisturbed).values()):
            if record["config"]["method"] != "dense":
                lock = filelock.FileLock(folder / f"{record['config_hash']}.lock", thread_local=False)
                locks.enter_context(lock.acquire(timeout=10))
        yield


def same_as_undisturbed(root: Path, world) -> None:
    assert results(root) == results(world[1])
    pd.testing.assert_frame_equal(table(root), table(world[1]))
    assert not list((root / "home" / "checkpoints" / "partial").iterdir())


@pytest.mark.slow
def test_a_sweep_killed_at_twenty_moments_ends_as_an_undisturbed_one(world, tmp_path, monkeypatch):
    """SIGKILL at seeded random moments; a sweep that is done starts over elsewhere until all kills have happened."""
    moments = random.Random(6)
    killed = sweeps = 0
    while killed < KILLS:
        sweeps += 1
        root = tmp_path / f"sweep{sweeps}"
        root.mkdir()
        monkeypatch.setenv("SKIMBENCH_HOME", str(root / "home"))
        arguments, before = [*world[0], "--results", str(root)], {}
        while killed < KILLS:
            child = in_child(lambda given=arguments: run_command(main, given), root / "output")
            status = killed_after(child, moments.uniform(0, world[2] / 2))
            after = records(root)
            assert before.items() <= after.items(), "a finished record was lost or changed"
            before = after
            if status != -signal.SIGKILL:
                assert status == 0, (root / "output").read_text()
                break
            killed += 1
        assert run_command(main, arguments) == 0
        assert before.items() <= records(root).items()
        same_as_undisturbed(root, world)


@pytest.mark.parametrize("left", ["folder", "lock"])
def test_what_a_run_killed_after_its_record_leaves_behind_is_cleared_up(world, monkeypatch, left):
    """The record is written, then the checkpoints go, the lock last; a kill between any two leaves the rest."""
    monkeypatch.setenv("SKIMBENCH_HOME", str(world[1] / "home"))
    partial = world[1] / "home" / "checkpoints" / "partial"
    some = next(iter(json.loads(text)["config_hash"] for text in records(world[1]).values()))
    (partial / f"{some}.lock").touch()
    if left == "folder":
        (partial / some).mkdir()
    assert run_command(main, [*world[0], "--results", str(world[1])]) == 0
    assert not list(partial.iterdir())


def test_a_search_killed_at_random_trials_ends_as_an_undisturbed_one(world, sweep, tmp_path, monkeypatch):
    """LAT's: SIGKILL at seeded random trials, each of them computed once in all."""
    arguments = [*sweep, "--methods", "lat", "--results", str(tmp_path / "killed")]
    score, scored = running.evaluate, tmp_path / "scored"

    def counting(reducer, *others, **named):
        if reducer.method_name == "lat" and len(others[0]) < 32:  # not the evaluation rows
            with scored.open("a") as stream:
                stream.write(f"{reducer.options.length_configuration}\n")
            if deadly is not None and len(scored.read_text().splitlines()) > deadly:
                os.kill(os.getpid(), signal.SIGKILL)
        return score(reducer, *others, **named)

    deadly: int | None
    monkeypatch.setattr(running, "evaluate", counting)
    for deadly in (2, 9, 17, None):
        child = in_child(lambda: run_command(main, arguments), tmp_path / "output")
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == (0 if deadly is None else -signal.SIGKILL), (tmp_path / "output").read_text()
    tried = scored.read_text().splitlines()
    assert len(tried) > 20 and len(tried) == len(set(tried)) + 3  # the one at which it was killed, each time
    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path / "undisturbed" / "home"))
    assert run_command(main, [*arguments, "--results", str(tmp_path / "undisturbed")]) == 0
    assert results(tmp_path / "killed") == results(tmp_path / "undisturbed")


def test_two_commands_together_compute_each_run_once(world, sweep, tmp_path, monkeypatch):
    compute, computed = running._compute, tmp_path / "computed"

    def noting(experiment, *others):
        with computed.open("a") as stream:
            stream.write(f"{experiment.config().hash}\n")
        return compute(experiment, *others)

    monkeypatch.setattr(running, "_compute", noting)
    children = [in_child(lambda: run_command(main, sweep), tmp_path / f"output{n}") for n in (1, 2)]
    for number, child in enumerate(children, 1):
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == 0, (tmp_path / f"output{number}").read_text()
    same_as_undisturbed(tmp_path, world)
    assert sorted(computed.read_text().split()) == sorted({*computed.read_text().split()})


def test_ctrl_c_keeps_finished_runs_and_says_so(world, sweep, tmp_path, monkeypatch):
    """In the middle of the second run's training."""
    train = running.train_stage
    stages = []

    def interrupted(*arguments, on_update, **others):
        stages.append(arguments)

        def told(rows: int) -> None:
            on_update(rows)
            if len(stages) == 2:
                os.kill(os.getpid(), signal.SIGINT)

        return train(*arguments, on_update=told, **others)

    with monkeypatch.context() as patch:
        patch.setattr(running, "train_stage", interrupted)
        child = in_child(lambda: run_command(main, sweep), tmp_path / "output")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = (tmp_path / "output").read_text()
    assert status == 130 and said.strip().splitlines()[-1] == (
        "stopped; finished runs are kept, the same command goes on from there"
    )
    assert "Traceback" not in said
    before = records(tmp_path)
    assert len(before) == 1
    assert run_command(main, sweep) == 0 and before.items() <= records(tmp_path).items()
    same_as_undisturbed(tmp_path, world)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_worker_outlives_its_command(world, sweep, tmp_path, how, status):
    """Two processes: Ctrl-C reaches all of them, SIGKILL the first one alone. Each waits for a run made elsewhere."""
    arguments = [*sweep, "--jobs", "2"]
    made_elsewhere = held(world[1], tmp_path)
    command = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.glue", *arguments],
        cwd=PROJECT_ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with made_elsewhere:
        while not records(tmp_path) and command.poll() is None:
            time.sleep(0.05)
        (os.killpg if how == signal.SIGINT else os.kill)(command.pid, how)
        said = command.communicate(timeout=120)[1]  # ends when the last process has closed it
    assert command.returncode == status
    assert how == signal.SIGKILL or "Traceback" not in said  # a worker that was starting then says that it is alone
    before = records(tmp_path)
    assert before and run_command(main, sweep) == 0 and before.items() <= records(tmp_path).items()
    same_as_undisturbed(tmp_path, world)


def refused_after(monkeypatch, writes: int, error: OSError) -> None:
    """Every write of a record or checkpoint fails, but for the first few."""
    left, sync = [writes], files._sync

    def full(path: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise error
        sync(path)

    monkeypatch.setattr(files, "_sync", full)


@pytest.mark.parametrize("writes", [0, 9, 25])
@pytest.mark.parametrize("reason", [(28, "No space left on device"), (30, "Read-only file system")])
def test_a_disk_that_refuses_ends_in_one_sentence_and_keeps_what_is_there(
    world, sweep, tmp_path, monkeypatch, capsys, writes, reason
):
    with monkeypatch.context() as patch:
        refused_after(patch, writes, OSError(*reason))
        assert run_command(main, sweep) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: cannot write ") and reason[1] in error and "free some space" in error
    before = records(tmp_path)
    assert not list(tmp_path.rglob("finetune/**/*.tmp"))
    assert run_command(main, sweep) == 0 and before.items() <= records(tmp_path).items()
    same_as_undisturbed(tmp_path, world)


def test_a_disk_too_full_for_the_weights_is_not_a_failed_run(world, sweep, tmp_path, monkeypatch, capsys):
    import safetensors

    def full(self, folder):
        folder.mkdir(parents=True)
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("methods.TokenReducer.save_pretrained", full)
        assert run_command(main, sweep) == 2
    assert "No space left on device" in capsys.readouterr().err and records(tmp_path) == {}
    assert not list((tmp_path / "home" / "checkpoints").glob(".mood*"))
    assert run_command(main, sweep) == 0
    same_as_undisturbed(tmp_path, world)


def test_a_data_file_that_goes_missing_mid_way(world, sweep, tmp_path, monkeypatch, capsys):
    """A second task's rows are gone when its runs start; those of the first are kept."""
    data = write_sentences(tmp_path / "data", rows=64)
    (data / "mood").rename(data / "temper")
    write_sentences(data, rows=64)
    arguments = [*sweep, "--data-dir", str(data), "--tasks", "mood", "temper"]
    run = running.run

    def losing(experiment, *others):
        if experiment.task.name == "temper":
            (data / "temper" / "train.csv").rename(data / "gone.csv")
            for cache in (experiment_data._rows, experiment_data._features, experiment_data._split_identity):
                cache.cache_clear()
        return run(experiment, *others)

    with monkeypatch.context() as patch:
        patch.setattr(running, "run", losing)
        assert run_command(main, arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no rows of split 'train'" in error and str(data / "temper") in error
    before = records(tmp_path)
    assert before
    (data / "gone.csv").rename(data / "temper" / "train.csv")
    assert run_command(main, arguments) == 0 and before.items() <= records(tmp_path).items()


def _grandchild(channel) -> None:
    _end_with_parent()
    channel.send(os.getpid())
    time.sleep(600)


def _parent(channel) -> None:
    multiprocessing.get_context("spawn").Process(target=_grandchild, args=(channel,)).start()
    time.sleep(600)


def test_worker_processes_end_with_a_killed_command():
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    parent = context.Process(target=_parent, args=(theirs,))
    parent.start()
    worker = ours.recv()
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    for _ in range(600):
        try:
            if Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived the command by a minute")
