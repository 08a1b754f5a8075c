"""The scaffolding: reproduce.sh without a network, CI, pins, and no traces of the machine it was made on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent

# Answers the version check like Python (or refuses), prints its arguments, and can fail one module. `venv` copies it.
STAND_IN = """#!/usr/bin/env bash
if [ "$1" = -c ]; then exit "${TOO_OLD:-0}"; fi
if [ "$1" = --version ]; then echo Python 3.11.0; exit; fi
if [ "$2" = venv ]; then mkdir -p .venv/bin; cp "$0" .venv/bin/python; fi
echo "ran $*"
if [ "$2" = "${FAILING:-}" ]; then printf 'Traceback\\nValueError: no file\\n' >&2; exit 1; fi
"""


@pytest.fixture
def project(tmp_path) -> Path:
    """A folder with what reproduce.sh needs and a stand-in for Python."""
    folder = tmp_path / "a project"
    folder.mkdir()
    for name in ("reproduce.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "python").write_text(STAND_IN, encoding="utf-8")
    (folder / "python").chmod(0o755)
    return folder


def reproduce(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("NO_INSTALL", "PYTHON", "PYTHONPATH")}
    command = [str(project / "reproduce.sh"), *arguments]
    where = project.parent  # never the project's folder: the script has to find it
    settings = clean | {"PYTHON": str(project / "python")} | environment
    return subprocess.run(command, cwd=where, env=settings, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"]])
def test_help_is_instant_and_names_every_target(project, arguments) -> None:
    start = time.perf_counter()
    done = reproduce(project, *arguments)
    assert done.returncode == 0 and time.perf_counter() - start < 2
    assert all(
        f"\n  {target} " in done.stdout
        for target in ("setup", "glue", "long", "latency", "bench", "audit", "report", "test", "help")
    )


def test_an_unknown_target_is_one_sentence_and_status_2(project) -> None:
    done = reproduce(project, "gleu")
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert "'gleu'" in done.stderr and "glue" in done.stderr


@pytest.mark.parametrize(
    ("target", "module"),
    [
        ("glue", "benchmarks.glue"),
        ("long", "benchmarks.long"),
        ("latency", "benchmarks.latency"),
        ("bench", "benchmarks.regression"),
        ("audit", "benchmarks.audit"),
        ("pareto", "benchmarks.pareto"),
        ("figures", "benchmarks.figures"),
        ("report", "benchmarks.report"),
        ("test", "pytest"),
    ],
)
def test_no_install_runs_the_given_python_and_makes_nothing(project, target, module) -> None:
    done = reproduce(project, target, "--flag", "two words", NO_INSTALL="1")
    assert (done.returncode, done.stdout) == (0, f"ran -m {module} --flag two words\n")
    assert not (project / ".venv").exists()


def test_no_install_finds_the_packages(project) -> None:
    (project / "benchmarks").mkdir()
    (project / "benchmarks" / "glue.py").write_text("import benchmarks; print('found')", encoding="utf-8")
    done = reproduce(project, "glue", NO_INSTALL="1", PYTHON=sys.executable)
    assert (done.returncode, done.stdout) == (0, "found\n")


def test_an_old_python_is_one_sentence(project) -> None:
    done = reproduce(project, "test", NO_INSTALL="1", TOO_OLD="1")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "3.11" in done.stderr


def test_install_is_done_once_and_again_after_a_change(project) -> None:
    first = reproduce(project, "test")
    pip = [line for line in first.stdout.splitlines() if "pip install" in line]
    assert first.returncode == 0 and len(pip) == 2 and all("-c constraints.txt" in line for line in pip)
    assert pip[0].endswith("torch setuptools") and "ran -m pytest" in first.stdout
    assert reproduce(project, "test").stdout == "ran -m pytest\n"
    with open(project / "constraints.txt", "a", encoding="utf-8") as stream:
        stream.write("x==1\n")
    assert "pip install" in reproduce(project, "test").stdout


def test_an_interrupted_install_is_repaired(project) -> None:
    broken = reproduce(project, "test", FAILING="pip")
    assert broken.returncode == 1 and not (project / ".venv" / ".installed").exists()
    assert "torch could not be installed" in broken.stderr
    assert "pip install" in reproduce(project, "test").stdout and (project / ".venv" / ".installed").exists()


def test_setup_survives_embedded_data_that_cannot_be_had(project) -> None:
    done = reproduce(project, "setup", FAILING="benchmarks.embedded")
    told = [line for line in done.stderr.splitlines() if "could not be prepared" in line]
    assert done.returncode == 0 and len(told) == 1 and told[0].endswith("ValueError: no file")
    assert "Traceback" not in done.stdout + done.stderr


def test_an_additional_index_is_used_for_torch_only(project) -> None:
    done = reproduce(project, "test", TORCH_INDEX_URL="https://example.org/cpu")
    used = [line for line in done.stdout.splitlines() if "--extra-index-url https://example.org/cpu" in line]
    assert len(used) == 1 and used[0].endswith("torch setuptools")


def test_ci_runs_the_readme_s_test_command() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[-1] == "exec ./reproduce.sh test"
    assert "\n./reproduce.sh test" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_dependency_is_pinned_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    assert next(iter(pins)) == "torch" and pins["torch"] == "2.13.0"
    assert not [version for version in pins.values() if not re.fullmatch(r"[\w.]+", version)]  # no paths, no local tags
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (Requirement(text) for group in groups for text in group):
        if requirement.name == project["name"]:  # another of its own extras
            assert requirement.extras <= set(project["optional-dependencies"])
            continue
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier


def test_no_file_names_a_machine_s_folders() -> None:
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout, so there is no list of the project's files")
    machine = re.compile(rb"(?<![\w.~])/(?:home|root|Users|work|opt|tmp)/\w")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert not [path for path in files if path.is_file() and machine.search(path.read_bytes())]
