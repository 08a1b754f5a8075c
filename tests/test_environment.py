"""The description of machine and checkout: complete, private, and right about what "dirty" means."""

from __future__ import annotations

import getpass
import json
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.environment import PROJECT_ROOT, _git_state, environment

git_state = _git_state.__wrapped__  # without the cache


def test_what_is_described() -> None:
    found = environment()
    assert found["torch"] == torch.__version__ and found["python"] == platform.python_version()
    assert set(found) == {
        "python", "torch", "transformers", "datasets", "numpy", "skimbench",
        "platform", "cpu", "cuda", "threads", "load_average", "git",
    }  # fmt: skip
    assert None not in [found[name] for name in ("transformers", "datasets", "numpy", "skimbench")]
    assert found["cpu"]["model"] and found["cpu"]["cores"] >= 1
    assert (found["cuda"] is not None) == torch.cuda.is_available()
    json.dumps(found, allow_nan=False)


def test_threads_are_read_at_each_call_and_answers_are_copies() -> None:
    before = torch.get_num_threads()
    try:
        environment()["cpu"]["cores"] = -1
        torch.set_num_threads(before + 1)
        assert environment()["threads"] == before + 1 and environment()["cpu"]["cores"] > 0
    finally:
        torch.set_num_threads(before)


def test_it_names_no_person_machine_or_folder() -> None:
    text = json.dumps(environment())
    assert str(PROJECT_ROOT) not in text and str(Path.home()) not in text
    assert f'"{getpass.getuser()}"' not in text and f'"{platform.node()}"' not in text


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A committed repository with the project's layout."""
    for name in ("pyproject.toml", "README.md", "methods/a.py", "results/runs/r.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1\n", encoding="utf-8")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "--no-verify", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "dirty"),
    [
        (None, False),
        ("methods/a.py", True),
        ("pyproject.toml", True),
        ("methods/sub/new.py", True),
        ("benchmarks/new.py", True),
        ("notes.txt", False),
        ("scratch/new.py", False),
        ("README.md", False),
        ("results/runs/r.json", False),
        ("results/runs/new.json", False),
    ],
)
def test_dirty(checkout, changed, dirty) -> None:
    if changed:
        (checkout / changed).parent.mkdir(parents=True, exist_ok=True)
        (checkout / changed).write_text("2\n", encoding="utf-8")
    found = git_state(checkout)
    assert found["dirty"] is dirty and len(found["revision"]) == 12


def test_outside_git_nothing_is_known(tmp_path, checkout) -> None:
    (checkout / "pyproject.toml").unlink()  # another project's repository
    assert git_state(checkout) == {"revision": None, "dirty": None}
    assert git_state(Path(tmp_path.anchor)) == {"revision": None, "dirty": None}


def test_without_a_commit_the_tree_is_dirty(tmp_path) -> None:
    (tmp_path / "pyproject.toml").touch()
    subprocess.run(["git", "-C", str(tmp_path), "init", "-q"], check=True)
    assert git_state(tmp_path) == {"revision": None, "dirty": True}
