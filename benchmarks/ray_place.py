"""Runs on a Ray cluster: one task per run, each on a node with the CPUs and GPUs that it asks for.

Everything that a run reads and writes lies in folders that all nodes share at the same path: the project, the results,
`skimbench_home()`, a local model and local data. Tasks take over the command's working directory, its module path and
its settings of the hub and of this project. See `docs/cluster.md`.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.embedded import skimbench_home
from benchmarks.environment import PROJECT_ROOT
from benchmarks.errors import UserError
from benchmarks.places import Report, RunDied, Workers, available_cores, set_report
from benchmarks.runs import MORE_MEMORY

WORKER_TRIES, NODE_TRIES = 3, 10  # a node may be taken away for no fault of the run's, which goes on from a checkpoint
_POLL_S, _CONNECT_S = 0.5, 10.0
_FORWARDED, _SECRET = ("SKIMBENCH_", "HF_", "TRANSFORMERS_", "TOKENIZERS_"), "_TOKEN"


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """A cluster and what a run gets of it.

    Attributes:
        address: "auto" (the running one), "local" (a new one on this machine) or HOST:PORT.
        cpus, gpus: that each run gets; fractions of one are shared.
        jobs: runs at a time at most; None for as many as fit.
    """

    address: str
    cpus: float
    gpus: float
    jobs: int | None = None

    def __str__(self) -> str:
        most = "as many as the nodes have room for" if self.jobs is None else f"{self.jobs} at most"
        return f"{most} at a time on Ray"

    @contextmanager
    def open(self, report: Report) -> Iterator[Workers]:
        """See `benchmarks.places.Place`.

        Raises:
            UserError: there is no such cluster, or none of its nodes can take a run.
        """
        if ":" in self.address:
            _probe(self.address)
        ray = _import_ray()
        _connect(ray, self.address)
        try:
            workers = _Tasks(ray, self)
            if not workers.room_on_any_node():
                raise UserError(f"no node of the Ray cluster has {self._wanted()}; ask for less or start such a node")
            with workers.reporting(report):
                yield workers
        finally:
            ray.shutdown()  # ends the tasks that still run

    def _wanted(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs for a run (--cpus-per-run, --gpus-per-run)"


def _import_ray() -> Any:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as later versions do; else each start warns
    try:
        import ray
    except ImportError as error:
        raise UserError("--executor ray needs the extra 'ray': pip install -c constraints.txt -e '.[ray]'") from error
    return ray


def _connect(ray: Any, address: str) -> None:
    local = {"num_cpus": available_cores(), "include_dashboard": False} if address == "local" else {}
    forwarded = (name for name in os.environ if name.startswith(_FORWARDED) and not name.endswith(_SECRET))
    settings = {name: os.environ[name] for name in forwarded}
    settings["SKIMBENCH_HOME"] = str(skimbench_home().absolute())
    settings["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PROJECT_ROOT), os.environ.get("PYTHONPATH"))))
    try:
        ray.init(address=address, logging_level=logging.CRITICAL, runtime_env={"env_vars": settings}, **local)
    except Exception as error:  # a plain one where the start takes too long
        reason = str(error).strip().split(". ")[0] or type(error).__name__
        hint = "start one with `ray start --head`, or set RAY_AUTH_MODE=token where one asks for a token"
        raise UserError(f"--address {address}: no Ray cluster ({reason}); {hint}") from error


def _probe(address: str) -> None:
    """Ray itself would wait for minutes where nobody listens."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--address {address}: nobody listens there ({reason}); see `ray status` on the head"
        ) from error


class _Tasks:
    """See `Workers`."""

    def __init__(self, ray: Any, cluster: RayCluster) -> None:
        self._ray, self._cluster = ray, cluster
        options = {"num_cpus": cluster.cpus, "num_gpus": cluster.gpus, "max_retries": 0}
        self._task = ray.remote(**options)(_task)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._tally = ray.remote(num_cpus=0, scheduling_strategy=here)(_Tally).remote()

    def room(self) -> int:
        fit = max(1, sum(self._fit(node) for node in self._nodes()))
        return fit if self._cluster.jobs is None else min(fit, self._cluster.jobs)

    def room_on_any_node(self) -> bool:
        """Whether some node can take a run at all."""
        return any(self._fit(node) for node in self._nodes())

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _fit(self, node: dict[str, float]) -> int:
        wanted = {"CPU": self._cluster.cpus, "GPU": self._cluster.gpus}
        return min(math.floor(node.get(name, 0.0) / size + 1e-6) for name, size in wanted.items() if size)

    def submit(self, call: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        folder, threads = Path.cwd(), max(1, int(self._cluster.cpus))
        task = self._task.remote(self._tally, folder, threads, call, arguments)
        task.future().add_done_callback(lambda done: self._hand_over(done, future))
        return future

    def _hand_over(self, done: Future[Any], future: Future[Any]) -> None:
        """Ray's outcome of a task in this project's terms."""
        errors, error = self._ray.exceptions, done.exception()
        if error is None:
            future.set_result(done.result())
        elif isinstance(error, errors.RayTaskError):
            future.set_exception(error.cause)
        elif isinstance(error, errors.NodeDiedError):
            future.set_exception(RunDied("its node was lost", NODE_TRIES))
        elif isinstance(error, (errors.WorkerCrashedError, errors.OutOfMemoryError)):
            future.set_exception(RunDied(f"its process died (out of memory?); {MORE_MEMORY}", WORKER_TRIES))
        else:
            future.set_exception(error)

    @contextmanager
    def reporting(self, report: Report) -> Iterator[None]:
        """A thread that hands what tasks have told to `report`."""
        ended = threading.Event()

        def forward() -> None:
            while not ended.wait(_POLL_S):
                report(self._ray.get(self._tally.take.remote()))

        thread = threading.Thread(target=forward, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class _Tally:
    """An actor beside the command: adds up what tasks tell."""

    def __init__(self) -> None:
        self._units = 0.0

    def add(self, units: float) -> None:
        """More work is done."""
        self._units += units

    def take(self) -> float:
        """What was told since the last call."""
        units, self._units = self._units, 0.0
        return units


def _task(tally: Any, folder: Path, threads: int, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """What a task does, on whichever node it runs."""
    import torch

    from benchmarks.checkpoints import know_own_code

    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(f"a node does not have the folder {folder}; share it at the same path on all nodes") from error
    know_own_code()
    torch.set_num_threads(threads)
    set_report(lambda units: tally.add.remote(units))
    return call(*arguments)
