"""`python -m benchmarks.as_released` on a tiny model: honest removal against what published code computes."""

from __future__ import annotations

import json

import pytest

import methods
from benchmarks.as_released import main
from benchmarks.cli import run_command
from tests.small_world import write_model, write_sentences

RELEASED = [name for name in methods.available() if methods.lookup(name).traits.as_released]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Records by method and the Markdown table of one finished command; its arguments."""
    root = tmp_path_factory.mktemp("released")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKIMBENCH_HOME", str(root / "home"))
        model, data = write_model(root / "model"), write_sentences(root / "data", rows=48)
        arguments = ["--profile", "local", "--model", str(model), "--data-dir", str(data), "--tasks", "mood"]
        arguments += ["--results", str(root / "results"), "--device", "cpu", "--quiet", "--jobs", "1"]
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


def test_methods_whose_code_removes_are_refused_with_a_reason(world, capsys):
    _, _, arguments = world
    assert run_command(main, [*arguments, "--methods", "power_bert"]) == 2
    assert "none of the chosen methods has released code that computes anything else" in capsys.readouterr().err


def test_a_dry_run_lists_and_computes_nothing(world, capsys):
    _, _, arguments = world
    assert run_command(main, [*arguments, "--dry-run", "--methods", "ltp"]) == 0
    assert "LTP on" in capsys.readouterr().out
