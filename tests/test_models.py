"""Encoders that commands are given: heads of other labels, and names that stand for nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import transformers

from benchmarks import accelerate, glue
from benchmarks.cli import run_command
from benchmarks.models import folder_model, load_model, replaced_head
from benchmarks.tasks import TASKS
from tests.small_world import write_model, write_sentences


@pytest.fixture
def classifier(tmp_path):
    """A folder with a classifier of three labels, and its body's weights."""
    folder = write_model(tmp_path / "three")
    torch.manual_seed(5)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    model.save_pretrained(folder)
    return folder, model


def test_a_head_of_other_labels_is_replaced_and_the_body_kept(classifier, tmp_path):
    folder, whole = classifier
    ref, task = folder_model(folder), TASKS["sst2"]
    torch.manual_seed(1)
    model = load_model(ref, task)
    assert model.classifier.weight.shape == (2, 32) and model.config.num_labels == 2
    body = whole.bert.state_dict()
    assert all(torch.equal(weight, body[name]) for name, weight in model.bert.state_dict().items())
    torch.manual_seed(1)
    assert torch.equal(load_model(ref, task).classifier.weight, model.classifier.weight)
    assert replaced_head(ref, task) == "three has a head of 3 label(s); SST-2 has 2, so a fresh head is trained"
    kept = load_model(ref, replace(task, num_labels=3))
    assert torch.equal(kept.classifier.weight, whole.classifier.weight)
    assert replaced_head(ref, replace(task, num_labels=3)) is None and replaced_head(ref, TASKS["squad_v2"]) is None
    assert replaced_head(folder_model(write_model(tmp_path / "plain")), task) is None


def test_commands_say_so_and_train(classifier, tmp_path, monkeypatch, capsys):
    folder, _ = classifier
    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path / "home"))
    data = write_sentences(tmp_path / "data", rows=48)
    said = "three has a head of 3 label(s); mood has 2, so a fresh head is trained"
    arguments = ["--profile", "local", "--model", folder, "--data-dir", data, "--tasks", "mood", "--results"]
    arguments += [tmp_path / "r", "--device", "cpu", "--methods", "dense", "--jobs", "1", "--quiet"]
    for more in (["--dry-run"], ["--max-train-samples", "8", "--max-eval-samples", "8"]):
        assert run_command(glue.main, [*map(str, arguments), *more]) == 0 and said in capsys.readouterr().out
    records = [json.loads(path.read_text()) for path in (tmp_path / "r").rglob("runs/**/*.json")]
    assert [record["status"] for record in records] == ["ok"]
    own = ["--task-data", data / "mood/train.csv", "--model", folder, "--dry-run"]
    assert run_command(accelerate.main, list(map(str, own))) == 0
    assert "three has a head of 3 label(s); train has 2" in capsys.readouterr().out
