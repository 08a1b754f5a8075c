"""Weights that are damaged, another training's, or gone: made again, and their record with them."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from benchmarks.cli import run_command
from benchmarks.glue import main
from benchmarks.runs_command import problems
from tests.test_kills import records, results, same_as_undisturbed, sweep, world

__all__ = ["sweep", "world"]  # fixtures

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the fixtures fork")


@pytest.mark.parametrize("damage", ["cut off", "gone", "no JSON"])
def test_damaged_weights_of_a_finished_run_are_put_aside_and_made_again(world, sweep, tmp_path, caplog, damage):
    """Of the dense model that the others start from."""
    assert run_command(main, [*sweep, "--methods", "dense"]) == 0
    assert run_command(main, [*sweep, "--methods", "power_bert"]) == 0
    before = records(tmp_path)
    for folder in (tmp_path / "home" / "checkpoints").glob("mood-dense-*"):
        weights = folder / "model.safetensors"
        if damage == "gone":
            weights.unlink()
        elif damage == "cut off":
            weights.write_bytes(weights.read_bytes()[:1000])
        else:
            (folder / "config.json").write_text("{")
    assert run_command(main, sweep) == 0
    assert before.items() <= records(tmp_path).items()
    assert "it cannot be read" in caplog.text and "trained anew" in caplog.text
    assert list((tmp_path / "home" / "checkpoints").glob("mood-dense-*.corrupt"))
    same_as_undisturbed(tmp_path, world)


def test_weights_of_another_training_are_made_again(world, sweep, tmp_path):
    """Such as those of a command whose results go elsewhere, by other code."""
    assert run_command(main, [*sweep, "--methods", "dense"]) == 0
    before = records(tmp_path)
    for folder in (tmp_path / "home" / "checkpoints").glob("mood-dense-*"):
        config = json.loads((folder / "config.json").read_text())
        config["facts"]["score"] += 0.25
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    assert run_command(main, sweep) == 0
    assert before.items() <= records(tmp_path).items()
    same_as_undisturbed(tmp_path, world)


def test_a_record_whose_weights_are_gone_is_replaced_by_that_of_another_training(world, sweep, tmp_path, caplog):
    """As if other code had trained the dense model: what started from it then is named."""
    assert run_command(main, [*sweep, "--methods", "dense"]) == 0
    assert run_command(main, [*sweep, "--methods", "power_bert"]) == 0
    for path in tmp_path.rglob("finetune/**/*.json"):
        record = json.loads(path.read_text())
        if record["config"]["method"] == "dense":
            record["metrics"]["score"] += 0.25
        else:
            assert len(record["metrics"]["starts"]) == 1
            record["metrics"]["starts"] = {name: score + 0.25 for name, score in record["metrics"]["starts"].items()}
        path.write_text(json.dumps(record))
    shutil.rmtree(tmp_path / "home" / "checkpoints")
    root = next(tmp_path.rglob("finetune")).parents[1]
    assert not list(problems(root))
    assert run_command(main, sweep) == 0
    assert "training it again came to a score of" in caplog.text
    dense = {name: found for name, found in results(tmp_path).items() if name.startswith("dense")}
    assert dense.items() <= results(world[1]).items()
    (line,) = problems(root)
    assert "power_bert-" in line and "started from a training of dense-" in line and "--force" in line
