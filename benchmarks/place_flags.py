"""Flags that say where runs are computed."""

from __future__ import annotations

import argparse
import re

from benchmarks.errors import UserError
from benchmarks.places import Local, Place, available_cores
from benchmarks.ray_place import RayCluster
from benchmarks.team import current

EXECUTORS = ("local", "ray")
_ADDRESS = re.compile(r"auto|local|[A-Za-z0-9][A-Za-z0-9.-]*:\d{1,5}|\[[0-9A-Fa-f:]+\]:\d{1,5}")
_RAY_ONLY = ("address", "cpus_per_run", "gpus_per_run")


def add_place_flags(parser: argparse.ArgumentParser) -> None:
    """`--jobs`, `--executor` and what belongs to them."""
    add = parser.add_argument
    add(
        "--jobs",
        type=int,
        metavar="N",
        help="runs at a time; default: one per CPU core, one on a GPU, on Ray as many as fit",
    )
    add("--executor", choices=EXECUTORS, default="local", help="processes of this machine (default), or a Ray cluster")
    add("--address", metavar="WHERE", help="Ray: auto (the running cluster; default), local (a new one) or HOST:PORT")
    add("--cpus-per-run", type=float, metavar="N", help="Ray: CPUs of each run; default: 1")
    add("--gpus-per-run", type=float, metavar="N", help="Ray: GPUs of each run, e.g. 0.5; default: 1 with cuda, else 0")


def chosen_place(arguments: argparse.Namespace, device: str) -> Place:
    """Where the runs go; `device` is "cpu" or "cuda".

    Raises:
        UserError: flags that do not go together or cannot be used.
    """
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {arguments.jobs}")
    if current().size > 1:
        return _shared(arguments)
    if arguments.executor == "local":
        for name in _RAY_ONLY:
            if getattr(arguments, name) is not None:
                raise UserError(f"{_flag(name)} is for --executor ray; add that, or leave {_flag(name)} out")
        return Local(arguments.jobs or (1 if device == "cuda" else available_cores()))
    address = arguments.address or "auto"
    if not _ADDRESS.fullmatch(address):
        raise UserError(f"--address takes auto, local or HOST:PORT, got '{address}'")
    cpus = 1.0 if arguments.cpus_per_run is None else arguments.cpus_per_run
    gpus = float(device == "cuda") if arguments.gpus_per_run is None else arguments.gpus_per_run
    if not 0 < cpus < float("inf"):
        raise UserError(f"--cpus-per-run must be above 0, got {cpus:g}")
    for name, amount in (("cpus_per_run", cpus), ("gpus_per_run", gpus)):
        if amount > 1 and amount != int(amount):
            raise UserError(f"{_flag(name)} above 1 must be a whole number, got {amount:g}")
    if device == "cpu" and gpus:
        raise UserError("--gpus-per-run with --device cpu: give runs on a CPU no GPU, or use --device cuda")
    if device == "cuda" and gpus == 0:
        raise UserError("--gpus-per-run 0 with --device cuda: runs on a GPU need one, or a part of one such as 0.5")
    return RayCluster(address=address, cpus=cpus, gpus=gpus, jobs=arguments.jobs)


def _shared(arguments: argparse.Namespace) -> Place:
    """One run at a time, which the processes of a launcher train together."""
    if arguments.executor == "ray" or (arguments.jobs or 1) > 1:
        flag = "--executor ray" if arguments.executor == "ray" else f"--jobs {arguments.jobs}"
        raise UserError(f"{flag} with {current().size} processes of a launcher, which share each run; leave it out")
    return Local(1)


def device_elsewhere(arguments: argparse.Namespace) -> str | None:
    """The device of runs on a cluster, whose nodes may have what this machine lacks; None where it says nothing.

    Raises:
        UserError: a number of GPUs that is none.
    """
    gpus = arguments.gpus_per_run
    if gpus is not None and not 0 <= gpus < float("inf"):
        raise UserError(f"--gpus-per-run must be 0 or more, got {gpus:g}")
    if arguments.executor != "ray":
        return None
    return arguments.device or ("cuda" if gpus else None)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
