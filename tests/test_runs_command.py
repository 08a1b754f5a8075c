"""`python -m benchmarks.runs`: list, show, verify and gc on folders as killed commands leave them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from benchmarks import checkpoints, runs
from benchmarks.checkpoints import Partial, Snapshot, partial_folder
from benchmarks.cli import run_command
from benchmarks.environment import PROJECT_ROOT
from benchmarks.runs import RunStore
from benchmarks.runs_command import main
from tests.test_runs import config, described

OLD = (1_000_000_000, 1_000_000_000)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Two good records and one of a failed run."""
    monkeypatch.setattr(runs, "environment", described)
    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(checkpoints, "made_by", lambda: "this")
    store = RunStore(tmp_path / "results")
    store.run(config(), lambda: {"score": 0.5})
    store.run(config(seed=2), lambda: {"score": 0.25})
    store.run(config(task="cola"), lambda: 1 / 0)
    return store.root


def call(root, *arguments) -> int:
    return run_command(main, [arguments[0], "--results", str(root), *arguments[1:]])


def test_list_has_a_line_for_each_record(root, capsys):
    assert call(root, "list") == 0
    out = capsys.readouterr().out
    assert "3 records" in out and out.count(" ltp ") == 3 and "ZeroDivisionError: division by zero" in out
    assert call(root, "list", "--status", "ok", "--task", "rte") == 0
    assert "2 records" in (out := capsys.readouterr().out) and "0.2500" in out and "failed" not in out


def test_list_names_what_it_cannot_read(root, capsys):
    (root / "runs" / "train" / "rte" / "ltp-0.json").write_text("{")
    assert call(root, "list") == 0
    assert "ltp-0.json: not readable as JSON" in capsys.readouterr().out


def test_show_prints_the_record_of_a_hash_or_its_beginning(root, capsys):
    for wanted in (config().hash, config().hash[:6]):
        assert call(root, "show", wanted) == 0
        assert json.loads(capsys.readouterr().out) == RunStore(root).load(config())


def test_verify_of_a_sound_folder_ends_well(root, capsys):
    assert call(root, "verify") == 0
    assert capsys.readouterr().out == "3 readable records, 1 of failed runs; 0 problems\n"


def test_verify_has_one_sentence_for_each_problem(root, capsys):
    place = RunStore(root).path(config())
    moved = place.with_name(f"lat-{config().hash}.json")
    moved.write_bytes(place.read_bytes())
    place.write_text(place.read_text().replace('"seed": 1', '"seed": 7'))
    place.with_name("x.json.corrupt").write_text("{")
    fresh = place.with_name(".y.json.1.tmp")
    fresh.write_text("")  # a command may be writing it
    folder = partial_folder(config(seed=3).hash)
    folder.mkdir(parents=True)
    (folder / "epoch.safetensors").write_bytes(b"cut")
    assert call(root, "verify") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "3 readable records, 1 of failed runs; 4 problems" and len(lines) == 5
    assert f"{moved}: no command finds it here; move it to {place}" in lines
    assert any("was edited" in line and "rerun its command" in line for line in lines)
    assert any("x.json.corrupt" in line and "gc" in line for line in lines)
    assert any("epoch.safetensors" in line and "start anew" in line for line in lines)


def test_gc_removes_what_killed_commands_left_and_nothing_else(root, capsys):
    folder = RunStore(root).path(config()).parent
    rubbish = [folder / "ltp-1.json.corrupt", folder / "ltp-1.json.corrupt1", folder / ".ltp-1.json.7.tmp"]
    for path in rubbish:
        path.write_text("{")
        os.utime(path, OLD)
    (folder / ".ltp-2.json.8.tmp").write_text("{")  # a command may be writing it
    for seed in (1, 5, 6):
        with Partial.open(config(seed=seed).hash) as partial:
            partial.save("epoch", Snapshot({}, {}))
    os.utime(partial_folder(config(seed=6).hash), OLD)
    going = [*rubbish, partial_folder(config().hash), partial_folder(config(seed=6).hash)]
    kept = sorted(path for path in root.rglob("*") if path not in going)
    assert call(root, "gc", "--dry-run") == 0
    assert all(path.exists() for path in going) and "5 files and folders" in capsys.readouterr().out
    assert call(root, "gc") == 0
    out = capsys.readouterr().out
    assert not any(path.exists() for path in going) and sorted(root.rglob("*")) == kept
    assert partial_folder(config(seed=5).hash).is_dir()  # half-done: the next command goes on with it
    assert "the run is finished" in out and "untouched for 30 days" in out and "killed process" in out
    assert call(root, "gc") == 0 and "0 files and folders" in capsys.readouterr().out


def test_programs_get_the_same_as_json(root, capsys):
    left = RunStore(root).path(config()).with_name("x.json.corrupt")
    left.write_text("{")
    assert call(root, "verify", "--json") == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["readable"], said["failed"]) == (3, 1) and [str(left) in line for line in said["problems"]] == [True]
    for flags, where in ((("--dry-run",), "would_go"), ((), "removed")):
        assert call(root, "gc", "--json", *flags) == 0
        (one,) = json.loads(capsys.readouterr().out)[where]
        assert (one["path"], one["bytes"]) == (str(left), 1)
    assert not left.exists()


def test_gc_leaves_what_a_running_command_works_on(root):
    with Partial.open(config().hash) as partial:
        partial.save("epoch", Snapshot({}, {}))
        assert call(root, "gc") == 0 and partial_folder(config().hash).is_dir()


def test_gc_of_failed_runs_and_of_weights_is_asked_for(root, tmp_path):
    weights = tmp_path / "home" / "checkpoints"
    ours, others = weights / f"rte-ltp-{config().hash}", weights / "rte-ltp-ffffffffffff"
    fresh, left = weights / "rte-ltp-eeeeeeeeeeee", weights / f".rte-ltp-{config().hash}.77"
    for folder in (ours, others, fresh, left):
        folder.mkdir(parents=True)
    for folder in (ours, others, left):
        os.utime(folder, OLD)
    assert call(root, "gc") == 0 and others.is_dir() and len(list(root.rglob("*.json"))) == 3
    assert call(root, "gc", "--failed", "--weights") == 0
    assert ours.is_dir() and fresh.is_dir() and not others.exists() and not left.exists()
    assert len(list(root.rglob("*.json"))) == 2


def test_the_module_is_the_command(root):
    command = [sys.executable, "-m", "benchmarks.runs", "list", "--results", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, check=True)
    assert "3 records" in done.stdout and done.stderr == ""
