"""Training steps are timed as they are trained: every stage, with the gradients that it needs and no others."""

from __future__ import annotations

import json
import statistics

import pandas as pd
import pytest
import torch
import transformers
from torch import nn

import methods
from benchmarks import training_time
from benchmarks.cli import run_command
from benchmarks.latency_profile import texts_of
from benchmarks.tasks import get_task
from benchmarks.train import Compute
from tests.tiny import tiny_model

TRAINED = [
    name
    for name in methods.available()
    if name not in ("dense", "random") and "single_text" not in methods.lookup(name).traits.unsupported
]


def world():
    """A tiny model without dropout, in float64, and a batch with labels."""
    torch.manual_seed(0)
    model = tiny_model("bert").train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    ((_, batch),) = texts_of([9, 4, 7], 60).batches()
    return model, batch | {"labels": torch.tensor([0, 1, 0])}


def steps_of(names):
    model, batch = world()
    task = get_task(training_time.TASK, None)
    return model, {one.key: one for one in training_time.steps(model, batch, names, task, Compute())}


def test_the_engine_s_dense_step_gives_the_stock_gradients():
    model, steps = steps_of([])
    gradients = []
    for key in ("stock", "dense@fine_tune"):
        steps[key].run()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert steps["dense@fine_tune"].passes == 1.0
    for stock, own in zip(*gradients, strict=True):
        assert (stock is None) == (own is None)
        if stock is not None:
            torch.testing.assert_close(own, stock, rtol=1e-4, atol=1e-6)


def test_a_stage_that_freezes_the_backbone_gives_it_no_gradients():
    model, steps = steps_of(["deebert"])
    steps["stock"].run()
    assert model.bert.encoder.layer[0].output.dense.weight.grad is not None
    ramps = next(one for key, one in steps.items() if key.startswith("deebert@"))
    ramps.run()
    assert all(parameter.grad is None for parameter in model.parameters()) and ramps.passes < 1


def test_every_stage_that_trains_is_timed_against_the_stock_model(tmp_path, monkeypatch, capsys):
    original = transformers.AutoConfig.for_model
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 12, "num_attention_heads": 4}

    def tiny(kind, **given):
        return original(kind, **given, **(sizes if "attn_implementation" in given else {}))

    monkeypatch.setattr(transformers.AutoConfig, "for_model", tiny)
    arguments = ["--lengths", "9", "6", "--rounds", "2", "--device", "cpu", "--results", str(tmp_path / "r")]
    assert run_command(training_time.main, arguments) == 0
    (path,) = (tmp_path / "r").rglob("interleaved-*.json")
    subjects = json.loads(path.read_text())["metrics"]["subjects"]
    assert {one["method"] for one in subjects} == {"dense", *TRAINED}
    assert all(len(one["wall_s"]) == 2 and min(one["wall_s"]) > 0 for one in subjects)
    task = get_task(training_time.TASK, None)
    stages = {
        (name, stage.name)
        for name in TRAINED
        for stage in methods.lookup(name).recipe_stages(task, "short")
        if stage.epochs and stage.name != "fine_tune"
    }
    assert {(one["method"], one["stage"]) for one in subjects if one["method"] != "dense"} == stages
    frame = pd.read_csv(next((tmp_path / "r").rglob("training_time.csv")))
    first = subjects[2]
    ratio = statistics.median(a / b for a, b in zip(first["wall_s"], subjects[0]["wall_s"], strict=True))
    assert frame["time_ratio"][2] == pytest.approx(ratio, rel=1e-3)
    assert (frame["time_ratio"] / frame["passes"]).to_numpy() == pytest.approx(frame["time_per_pass"], rel=1e-4)
    assert "Transkimmer" in next((tmp_path / "r").rglob("training_time.md")).read_text()
    capsys.readouterr()
    assert run_command(training_time.main, [*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["rows"]
    assert [row["time_ratio"] for row in said] == pytest.approx(frame["time_ratio"].tolist(), rel=1e-3)
