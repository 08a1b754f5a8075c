"""Runs that several processes train together: what the leader ends with, also where a process fails or is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from benchmarks import checkpoints, running, train
from benchmarks.cli import run_command
from benchmarks.environment import PROJECT_ROOT
from benchmarks.glue import main
from methods.power_bert import SEARCH
from tests.small_world import write_model, write_sentences
from tests.test_kills import in_child, records, results

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="forks"),
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed"),
]
METHODS = ("power_bert", "transkimmer", "top")  # parameters made late; straight-through draws; ascent


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Arguments of a small sweep whose model draws no dropout."""
    root = tmp_path_factory.mktemp("team")
    model, data = write_model(root / "model"), write_sentences(root / "data", rows=62)
    config = json.loads((model / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config))
    arguments = ["--profile", "local", "--model", str(model), "--data-dir", str(data), "--tasks", "mood", "--quiet"]
    return [*arguments, "--device", "cpu", "--dtype", "float32", "--methods", *METHODS]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(arguments: list[str], root: Path, size: int, prepare: Callable[[int], None]) -> list[int]:
    """Processes as a launcher starts them; returns their ids, the leader's first."""
    port = free_port()

    def process(rank: int) -> int:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= address | {"WORLD_SIZE": str(size), "RANK": str(rank), "SKIMBENCH_HOME": str(root / "home")}
        prepare(rank)
        return run_command(main, [*arguments, "--results", str(root)])

    root.mkdir(exist_ok=True)
    return [in_child(lambda rank=rank: process(rank), root / f"output{rank}") for rank in range(size)]


def statuses(children: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def together(arguments: list[str], root: Path, size: int = 2, prepare: Callable[[int], None] = lambda rank: None):
    """The results of a sweep on `size` processes."""
    outputs = [root / f"output{rank}" for rank in range(size)]
    assert statuses(start(arguments, root, size, prepare)) == [0] * size, "\n".join(p.read_text() for p in outputs)
    return results(root)


def weights(root: Path, method: str) -> dict[str, torch.Tensor]:
    """What a method has been trained to."""
    folders = (root / "home" / "checkpoints").glob(f"mood-{method}-*")
    return safetensors.torch.load_file(next(folders) / "model.safetensors")


@pytest.fixture(scope="module")
def both(world, tmp_path_factory):
    """Results of two processes and of one."""
    root = tmp_path_factory.mktemp("both")
    return together(world, root / "two"), together(world, root / "one", size=1), root


@pytest.mark.parametrize("method", ["dense", "power_bert"])
def test_two_processes_train_what_one_does(world, both, method):
    """Without draws, up to rounding: every row once, weighted alike, in uneven batches too."""
    root = both[2]
    two, one = weights(root / "two", method), weights(root / "one", method)
    untrained = safetensors.torch.load_file(Path(world[world.index("--model") + 1]) / "model.safetensors")
    assert two.keys() == one.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=2e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    moved = max(float((weight - one[f"model.bert.{name}"]).abs().max()) for name, weight in untrained.items())
    assert moved > 2e-4


def test_records_say_how_many_processes_trained(both):
    said = [json.loads(text)["config"]["extra"].get("processes") for text in records(both[2] / "two").values()]
    assert said == [2] * len(said) and len(said) > len(METHODS)
    assert not any("processes" in json.loads(text)["config"]["extra"] for text in records(both[2] / "one").values())


def test_the_same_sweep_again_gives_the_same_numbers(world, both, tmp_path):
    assert together(world, tmp_path / "again") == both[0]


def test_a_killed_team_goes_on_bit_for_bit(world, both, tmp_path):
    """Leader and helper, twice, each time at the tenth update that they make together."""
    update, made = train._Training._update, []

    def deadly(self, *arguments):
        made.append(1)
        if len(made) == 10:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(self, *arguments)

    def prepare(rank: int) -> None:
        checkpoints.EVERY_S = 0.0
        train._Training._update = deadly

    root = tmp_path / "killed"
    for _ in range(2):
        assert statuses(start(world, root, 2, prepare)) == [-signal.SIGKILL] * 2
    assert together(world, root) == both[0]


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_fails_the_run_alone(world, tmp_path, rank):
    """In the middle of PoWER-BERT's training; the next method is trained by both again."""
    compute = train._gradients

    def failing(reducer, *others):
        if reducer.method_name == "power_bert" and reducer.progress > 0.5:
            raise MemoryError("cannot allocate 9 GiB")
        return compute(reducer, *others)

    def prepare(this: int) -> None:
        if this == rank:
            train._gradients = failing

    arguments = [*world, "--methods", "power_bert", "transkimmer"]
    status = statuses(start(arguments, tmp_path / "failed", 2, prepare))
    assert status == [1, 0]
    by_method = {
        record["config"]["method"]: record for record in map(json.loads, records(tmp_path / "failed").values())
    }
    assert by_method["transkimmer"]["status"] == "ok" and by_method["power_bert"]["status"] == "failed"
    said = "9 GiB" if rank == 0 else "another process of this run failed, see its output"
    assert said in by_method["power_bert"]["error"]
    if rank:
        assert "process 1: mood: PoWER-BERT" in (tmp_path / "failed" / "output1").read_text()


def test_an_error_between_updates_lets_the_helpers_go(world, tmp_path):
    """While the leader keeps a checkpoint."""

    def prepare(rank: int) -> None:
        checkpoints.EVERY_S = 0.0
        save = running.Partial.save

        def refused(self, name, snapshot):
            if name == checkpoints.EPOCH and snapshot.state["stage"] == SEARCH:
                raise MemoryError("cannot copy the weights")
            return save(self, name, snapshot)

        running.Partial.save = refused

    status = statuses(start([*world, "--methods", "power_bert", "transkimmer"], tmp_path / "failed", 2, prepare))
    assert status == [1, 0]
    found = [json.loads(text) for text in records(tmp_path / "failed").values()]
    assert {r["config"]["method"] for r in found if r["status"] == "ok"} == {"dense", "transkimmer"}


def test_a_helper_without_its_rows_fails_the_run_and_stays(world, tmp_path):
    """Before its first update, while the leader waits for it in theirs."""

    def prepare(rank: int) -> None:
        read = running.training_features

        def unreadable(experiment):
            if rank and experiment.method == "power_bert":
                raise OSError("train.csv: Permission denied")
            return read(experiment)

        running.training_features = unreadable

    status = statuses(start([*world, "--methods", "power_bert", "transkimmer"], tmp_path / "failed", 2, prepare))
    assert status == [1, 0]
    found = [json.loads(text) for text in records(tmp_path / "failed").values()]
    assert {r["config"]["method"] for r in found if r["status"] == "ok"} == {"dense", "transkimmer"}
    assert "Permission denied" in (tmp_path / "failed" / "output1").read_text()


def test_several_runs_at_a_time_are_refused(world, tmp_path):
    children = start([*world, "--jobs", "2"], tmp_path / "refused", 2, lambda rank: None)
    assert statuses(children) == [2, 0]
    assert "--jobs 2 with 2 processes of a launcher" in (tmp_path / "refused" / "output0").read_text()


def test_accelerate_launch(world, tmp_path):
    """The command as the documentation has it."""
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --dynamo_backend no"
    command = ["-m", "benchmarks.glue", *world, "--methods", "transkimmer", "--results", str(tmp_path)]
    port = ["--mixed_precision", "no", "--main_process_port", str(free_port())]
    done = subprocess.run(
        [sys.executable, *launch.split(), *port, *command],
        cwd=PROJECT_ROOT,
        env={**os.environ, "SKIMBENCH_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(text)["config"]["extra"].get("processes") for text in records(tmp_path).values()]
    assert said == [2, 2]


def test_a_process_leaves_no_thread_of_the_group_behind():
    """One that lets go of a tensor as the interpreter ends would abort a process that has done its work."""
    threads = "[Path(f'/proc/self/task/{task}/comm').read_text().strip() for task in os.listdir('/proc/self/task')]"
    process = f"""
        import os
        from pathlib import Path
        from benchmarks import team

        with team.joined() as processes:
            import torch._dynamo  # as training does, which imports what may keep the group
            assert any("gloo" in name for name in {threads}), "gloo's threads have other names"
            if not processes.leads:
                assert list(processes.orders()) == []
        left = [name for name in {threads} if "gloo" in name]
        assert not left, left
    """
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(process)]
    both = [
        subprocess.Popen(
            command, cwd=PROJECT_ROOT, env={**os.environ, **world, "RANK": str(rank)}, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    errors = [started.communicate(timeout=120)[1].decode() for started in both]
    assert [started.returncode for started in both] == [0, 0], "\n".join(errors)
