"""Where a number was measured: versions, processor, device, threads, git state; no names of people or machines."""

import copy
import functools
import importlib.metadata
import os
import platform
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

PROJECT_ROOT = Path(__file__).resolve().parent.parent

LIBRARIES = ("torch", "transformers", "datasets", "numpy", "skimbench")
# Processor features that decide how fast low precision is (names as the Linux kernel prints them).
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")


def environment() -> dict[str, Any]:
    """Describe this process and its machine as plain data, ready for JSON.

    Keys: `python`, `torch`, `transformers`, `datasets`, `numpy`, `skimbench` (version strings, None if absent);
    `platform`; `cpu` (`model`, `cores`: those this process may use, `features`); `cuda` (None, or `device`, `driver`,
    `runtime`, `capability`, `memory_gib`); `threads` (torch's intra-operation threads); `load_average` (runnable
    processes over the last minute; None where unknown); `git` (see `git_state`). All is read once per process except
    `threads` and `load_average`, which are read at each call. Importing torch makes the first call slow (seconds).
    """
    import torch

    return {
        **copy.deepcopy(_fixed_part()),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "git": git_state(),
    }


def machine(device: str) -> str:
    """The model of what computes on `device`, "cpu" or "cuda": times of one machine are not those of another."""
    described = _fixed_part()
    return described["cuda"]["device"] if device == "cuda" else described["cpu"]["model"]


def git_state() -> dict[str, Any]:
    """Return `{"revision": 12 hex digits or None, "dirty": bool or None}` of the checkout; both None outside git.

    Dirty means that the revision does not tell what code ran: a tracked file differs from it, or a Python file under
    methods/ or benchmarks/ is not tracked. Changes under results/ and in Markdown files do not count: commands write
    these themselves, and no number comes from them. A checkout without any commit is dirty. Read once per process.
    """
    return dict(_git_state(PROJECT_ROOT))


@functools.cache
def _git_state(root: Path) -> dict[str, Any]:
    inside = _git(root, "rev-parse", "--is-inside-work-tree")
    # Installed into some other repository's virtual environment: that repository's revision says nothing about us.
    if inside is None or not (root / "pyproject.toml").is_file():
        return {"revision": None, "dirty": None}
    changed = _git(root, "diff", "--name-only", "HEAD", "--", ".", ":(exclude)results", ":(exclude)*.md")
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", "--", "methods/*.py", "benchmarks/*.py")
    return {"revision": _git(root, "rev-parse", "--short=12", "HEAD"), "dirty": changed != "" or untracked != ""}


def _git(root: Path, *arguments: str) -> str | None:
    """Return the output of one git command in `root`, stripped; None if git is absent, fails or hangs for a minute."""
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    return _output(command)


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def _fixed_part() -> dict[str, Any]:
    versions = {name: version(name) for name in LIBRARIES}
    return {
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cuda": _cuda(),
    }


def version(name: str) -> str | None:
    """The version of an installed library (of this project, also where it only runs from its folder), or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
    if name != "skimbench" or not (PROJECT_ROOT / "pyproject.toml").is_file():
        return None
    # Run from a checkout that was never installed (NO_INSTALL=1).
    return tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def _cpu() -> dict[str, Any]:
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        info = ""
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", info, re.MULTILINE)
    present = set(flags.group(1).split()) if flags else set()
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "model": model.group(1).strip() if model else platform.processor() or platform.machine(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "features": [feature for feature in CPU_FEATURES if feature in present],
    }


def _cuda() -> dict[str, Any] | None:
    """Describe the current CUDA device; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    driver = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return {
        "device": properties.name,
        "driver": driver.splitlines()[0] if driver else None,
        "runtime": torch.version.cuda,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
    }
