"""`python -m benchmarks.as_released` on a tiny model: honest removal against what published code computes."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

import methods
from benchmarks import as_released, experiment_data, places
from benchmarks.as_released import main
from benchmarks.cli import run_command
from benchmarks.data import DataSource
from benchmarks.experiments import Setting
from benchmarks.tasks import TASKS
from benchmarks.train import Compute
from tests.small_world import write_model, write_sentences
from tests.tiny import tiny_reducer

PROCESSES = places._processes
RELEASED = [name for name in methods.available() if methods.lookup(name).traits.as_released]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Records by method and the Markdown table of one finished command; its arguments."""
    root = tmp_path_factory.mktemp("released")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKIMBENCH_HOME", str(root / "home"))
        model, data = write_model(root / "model"), write_sentences(root / "data", rows=48)
        arguments = ["--profile", "local", "--model", str(model), "--data-dir", str(data), "--tasks", "mood"]
        arguments += ["--device", "cpu", "--dtype", "float32", "--results", str(root / "results"), "--quiet"]
        arguments += ["--jobs", "1"]
        assert run_command(main, arguments) == 0
        paths = (root / "results").rglob("as_released/**/*.json")
        records = {path.name.split("-")[0]: json.loads(path.read_text()) for path in paths}
        table = next((root / "results").rglob("as_released-local.md")).read_text()
        yield records, table, arguments


def test_every_method_with_released_masking_is_compared(world):
    records, table, _ = world
    assert set(records) == set(RELEASED) and {"transkimmer", "ltp"} <= set(RELEASED)
    for name in RELEASED:
        assert methods.lookup(name).traits.title in table


def test_released_masking_saves_nothing_and_removal_is_what_the_run_reported(world):
    records, _, _ = world
    for name, record in records.items():
        metrics = record["metrics"]
        assert metrics["released"]["speedup"] <= 1.0 or methods.lookup(name).traits.released_removes
        assert metrics["honest"]["speedup"] >= metrics["released"]["speedup"]
        assert record["config"]["extra"]["released"] == json.loads(
            json.dumps(dict(methods.lookup(record["config"]["method"]).traits.as_released))
        )


def test_masking_alone_changes_no_prediction(world):
    """LTP's released code only fails to remove, and decides nothing at random."""
    records, _, _ = world
    assert records["ltp"]["metrics"]["predictions_changed"] == 0
    assert records["ltp"]["metrics"]["logit_gap_max"] < 1e-4 * records["ltp"]["metrics"]["logit_size_mean"]
    assert records["ltp"]["metrics"]["released"]["draws"] == 1


def test_a_reducer_is_run_on_the_device_of_the_setting(monkeypatch):
    """Weights are loaded to the processor; the meta device stands in for a GPU."""
    places = []

    def run_split(reducer, features, experiment, *, released):
        places.append(reducer.model.device.type)
        return as_released.Outputs(torch.zeros(2, 2), 1, 1)

    monkeypatch.setattr(as_released, "run_split", run_split)
    monkeypatch.setattr(experiment_data, "evaluation_features", lambda *_: [{"label": 0}, {"label": 1}])
    setting = Setting(recipe="short", source=DataSource("embedded"), compute=Compute(device="meta"))
    as_released._compute(SimpleNamespace(setting=setting, task=TASKS["sst2"], seed=1), tiny_reducer("ltp"))
    assert set(places) == {"meta"}


def test_methods_whose_code_removes_are_refused_with_a_reason(world, capsys):
    _, _, arguments = world
    assert run_command(main, [*arguments, "--methods", "power_bert"]) == 2
    assert "none of the chosen methods has released code that computes anything else" in capsys.readouterr().err


def test_a_dry_run_lists_and_computes_nothing(world, capsys):
    _, _, arguments = world
    assert run_command(main, [*arguments, "--dry-run", "--methods", "ltp"]) == 0
    assert "LTP on" in capsys.readouterr().out


def test_two_processes_train_and_give_the_numbers_of_one(world, tmp_path, monkeypatch):
    records, _, arguments = world
    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    opened = []
    monkeypatch.setattr(places, "_processes", lambda jobs, report: opened.append(jobs) or PROCESSES(jobs, report))
    again = [*arguments, "--results", str(tmp_path), "--jobs", "2", "--methods", "ltp", "transkimmer"]
    assert run_command(main, again) == 0 and opened == [2]
    paths = {path.name.split("-")[0]: path for path in tmp_path.rglob("as_released/**/*.json")}
    assert set(paths) == {"ltp", "transkimmer"}
    for name, path in paths.items():
        assert json.loads(path.read_text())["metrics"] == records[name]["metrics"]


def test_a_second_call_needs_neither_training_nor_weights(world, tmp_path, monkeypatch):
    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path / "home"))
    assert run_command(main, world[2]) == 0
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_training_that_fails_is_named_and_the_others_are_compared(world, tmp_path, monkeypatch, capsys):
    from methods.ltp import Ltp

    def broken(self, *arguments):
        raise FloatingPointError("on purpose")

    monkeypatch.setattr(Ltp, "after_attention", broken)
    arguments = [*world[2], "--results", str(tmp_path), "--methods", "ltp", "transkimmer"]
    assert run_command(main, arguments) == 1
    said = capsys.readouterr()
    assert "failed: mood: LTP on model, seed 42: FloatingPointError: on purpose" in said.err
    assert "Transkimmer" in said.out and "LTP" not in said.out
    assert [path.name.split("-")[0] for path in tmp_path.rglob("as_released/**/*.json")] == ["transkimmer"]
