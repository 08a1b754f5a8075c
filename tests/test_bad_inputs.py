"""Bad input of every command ends in one sentence that says what and where, with its exit status; never a traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import (
    accelerate,
    as_released,
    audit,
    case_study,
    embedded,
    experiment_data,
    forwarding,
    glue,
    latency,
    latency_targets,
    long,
    pareto,
    plain_trial,
    plan,
    regression,
    report,
    runs_command,
    strategy,
    training_time,
    twins,
)
from benchmarks.cli import run_command
from benchmarks.environment import PROJECT_ROOT
from benchmarks.runs import RunStore
from tests.bad_arguments import ARGUMENTS
from tests.bad_files import FILES
from tests.small_world import write_model, write_sentences
from tests.spoiling import LOCAL
from tests.test_runs import config, record_of
from tests.tiny import tiny_reducer

COMMANDS = {
    "glue": glue.main,
    "long": long.main,
    "as_released": as_released.main,
    "twins": twins.main,
    "forwarding": forwarding.main,
    "audit": audit.main,
    "case_study": case_study.main,
    "report": report.main,
    "plan": plan.main,
    "runs": runs_command.main,
    "latency": latency.main,
    "latency_targets": latency_targets.main,
    "regression": regression.main,
    "strategy": strategy.main,
    "plain_trial": plain_trial.main,
    "training_time": training_time.main,
    "pareto": pareto.main,
    "embedded": embedded.main,
    "accelerate": accelerate.main,
}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A model, data and a results folder with one record: what the cases below spoil, one thing at a time."""
    root = tmp_path_factory.mktemp("good")
    write_model(root / "model")
    write_sentences(root / "data", rows=16)
    (root / "results").mkdir()
    RunStore(root / "results").write(config(), record_of(config()))
    torch.manual_seed(0)
    tiny_reducer("transkimmer").save_pretrained(root / "reducer")
    return root


@pytest.fixture
def spoilt(good, tmp_path, monkeypatch) -> Path:
    """A copy of it."""
    shutil.copytree(good, tmp_path / "w")
    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "w")
    for cache in ("_rows", "_features", "_split_identity", "padding_id"):  # the cases share names of folders
        getattr(experiment_data, cache).cache_clear()
    return tmp_path / "w"


CASES = ARGUMENTS | FILES


@pytest.mark.parametrize("case", CASES)
def test_bad_input_ends_in_one_sentence(spoilt, case, capsys, monkeypatch):
    command, arguments, spoil, parts = CASES[case]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if spoil is not None:
        spoil(spoilt)
    assert run_command(COMMANDS[command], arguments) == 2
    said = capsys.readouterr().err
    error = said.strip().splitlines()[-1]
    assert error.startswith("error: ") and "Traceback" not in said and said.count("error: ") == 1
    for part in parts:
        assert part in error


def test_there_are_enough_cases():
    assert len(CASES) >= 60


def test_debug_shows_where_an_error_came_from(spoilt):
    with pytest.raises(Exception, match="no task 'moood'"):
        run_command(glue.main, [*LOCAL, "--tasks", "moood", "--debug"])


def test_a_defect_of_ours_is_one_line_too(capsys):
    assert run_command(lambda argv: 1 / 0, []) == 1
    assert capsys.readouterr().err == "error: ZeroDivisionError: division by zero; add --debug to see where\n"


SHELL = {
    "unknown target": (["gleu"], {}, 2, "unknown target 'gleu'; the targets are setup, glue"),
    "no interpreter": (["glue"], {"NO_INSTALL": "1", "PYTHON": "/no/python", "PATH": "{bare}"}, 1, "set PYTHON to one"),
}


@pytest.mark.parametrize("case", SHELL)
def test_the_script_says_what_is_wrong(case, tmp_path):
    arguments, settings, status, part = SHELL[case]
    for tool in ("bash", "dirname", "env"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    environment = os.environ | {name: value.format(bare=tmp_path) for name, value in settings.items()}
    command = [str(PROJECT_ROOT / "reproduce.sh"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == status and part in done.stderr and done.stderr.count("\n") == 1
