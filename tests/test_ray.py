"""A sweep on a Ray cluster: the records of `local`, also where nodes and processes are lost on the way."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import runs
from benchmarks.cli import run_command
from benchmarks.errors import UserError
from benchmarks.glue import main
from benchmarks.places import RunDied, tell
from benchmarks.ray_place import NODE_TRIES, WORKER_TRIES, RayCluster
from benchmarks.runs import RunStore
from tests.small_world import write_model, write_sentences
from tests.test_kills import held, records, results
from tests.test_runs import config

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="needs the extra 'ray'")

pytestmark = pytest.mark.slow
MEMORY = {"object_store_memory": 80_000_000}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Arguments of a small sweep with starting runs and twins, and the results of `local`."""
    root = tmp_path_factory.mktemp("ray")
    model, data = write_model(root / "model"), write_sentences(root / "data", rows=64)
    arguments = ["--profile", "local", "--model", str(model), "--data-dir", str(data), "--tasks", "mood", "--quiet"]
    arguments += ["--methods", "power_bert", "transkimmer", "deebert", "random", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("SKIMBENCH_HOME", str(root / "local" / "home"))
        assert run_command(main, [*arguments, "--jobs", "1", "--results", str(root / "local")]) == 0
        yield arguments, results(root / "local"), root / "local"


@pytest.fixture(scope="module")
def nodes():
    """Two nodes with a CPU each; the second one, too."""
    cluster = second = None
    for tries_left in (2, 1, 0):  # on a busy machine, Ray gives its own processes too little time to start
        cluster = cluster_utils.Cluster()
        try:
            cluster.add_node(num_cpus=1, **MEMORY)
            second = cluster.add_node(num_cpus=1, **MEMORY)
            break
        except Exception:
            cluster.shutdown()
            if not tries_left:
                raise
    yield cluster, second
    cluster.shutdown()


def of_command(cluster, root: Path) -> list[str]:
    return ["--executor", "ray", "--address", cluster.address, "--results", str(root)]


def busy_workers(node) -> list[psutil.Process]:
    """Processes of a node that compute a run right now."""
    raylets = [info.process.pid for name, infos in node.all_processes.items() for info in infos if name == "raylet"]
    children = [child for raylet in raylets for child in psutil.Process(raylet).children()]
    return [child for child in children if "ray::_task" in " ".join(child.cmdline())]


class Killer(threading.Thread):
    """Once a run has ended and another one is computed on the node, ends its process; at the next one, the node.

    Attributes:
        waiting: closed when the node is gone; until then, runs wait for it.
    """

    def __init__(self, root: Path, cluster, node, waiting: contextlib.ExitStack) -> None:
        super().__init__(daemon=True)
        self._root, self._cluster, self._node = root, cluster, node
        self.waiting = waiting

    def run(self) -> None:
        with self.waiting:
            self._soon(lambda: records(self._root))
            self._soon(lambda: busy_workers(self._node))[0].kill()
            time.sleep(0.5)
            self._soon(lambda: busy_workers(self._node))
            self._cluster.remove_node(self._node, allow_graceful=False)

    def _soon(self, look):
        """What `look` finds, once it does."""
        until = time.monotonic() + 120
        while time.monotonic() < until:
            with contextlib.suppress(psutil.NoSuchProcess):
                if found := look():
                    return found
            time.sleep(0.02)
        raise TimeoutError("two minutes have gone by")


def succeeds(units: float) -> int:
    tell(units)
    tell(units)
    return os.getpid()


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_refused() -> None:
    raise UserError("no rows in train.csv")


def runs_out_of_memory(store: RunStore) -> dict:
    def compute() -> dict:
        raise MemoryError("cannot allocate 9 GiB")

    return store.run(config(), compute)


def test_outcomes_of_tasks_come_back_in_our_terms(nodes, tmp_path, monkeypatch):
    told: list[float] = []
    with RayCluster(address=nodes[0].address, cpus=1.0, gpus=0.0).open(told.append) as workers:
        assert workers.room() == 2
        good, dead, refused, failed = (
            workers.submit(call, *arguments)
            for call, *arguments in ((succeeds, 2.5), (dies,), (is_refused,), (runs_out_of_memory, RunStore(tmp_path)))
        )
        assert good.result() != os.getpid()
        with pytest.raises(RunDied, match="its process died") as died:
            dead.result()
        assert died.value.tries == WORKER_TRIES < NODE_TRIES
        with pytest.raises(UserError) as error:
            refused.result()
        assert str(error.value) == "no rows in train.csv"
        assert failed.result()["status"] == "failed" and failed.result()["error"].startswith("MemoryError: ")
        assert runs.read_record(RunStore(tmp_path).path(config())) == failed.result()
        for _ in range(100):
            if sum(told) == 5.0:
                break
            time.sleep(0.1)
        assert sum(told) == 5.0


def test_runs_share_what_they_ask_parts_of(nodes):
    with RayCluster(address=nodes[0].address, cpus=0.25, gpus=0.0).open(lambda units: None) as workers:
        assert workers.room() == 8
    with RayCluster(address=nodes[0].address, cpus=0.25, gpus=0.0, jobs=3).open(lambda units: None) as workers:
        assert workers.room() == 3
    cluster = RayCluster(address=nodes[0].address, cpus=1.0, gpus=0.5)
    with pytest.raises(UserError, match=r"no node of the Ray cluster has 1 CPUs and 0\.5 GPUs"), cluster.open(print):
        pass


def test_a_process_and_a_node_killed_mid_sweep_cost_nothing(world, nodes, tmp_path, monkeypatch, caplog):
    """Last: it takes the second node."""
    arguments, expected, undisturbed = world
    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path / "home"))
    waiting = contextlib.ExitStack()
    waiting.enter_context(held(undisturbed, tmp_path))
    killer = Killer(tmp_path, *nodes, waiting)
    killer.start()
    assert run_command(main, [*arguments, *of_command(nodes[0], tmp_path)]) == 0
    killer.join(timeout=60)
    assert "its process died" in caplog.text and "its node was lost; trying again" in caplog.text
    assert results(tmp_path) == expected
