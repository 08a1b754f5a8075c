"""Encoders that commands are given: heads of other labels, and names that stand for nothing."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace

import pytest
import torch
import transformers

from benchmarks import accelerate, glue
from benchmarks.cli import run_command
from benchmarks.errors import UserError
from benchmarks.hub import hub_is_reachable
from benchmarks.models import check_reachable, find_model, folder_model, load_model, load_tokenizer, replaced_head
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


def test_a_half_precision_checkpoint_is_trained_in_float32(tmp_path):
    folder = write_model(tmp_path / "half")
    transformers.BertModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    model = load_model(folder_model(folder), TASKS["sst2"])
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


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


@pytest.mark.parametrize("name", ["no/such/model", "./none", "/none", "~/none", "here/none", "up\\none"])
def test_what_looks_like_a_path_is_no_name_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(UserError, match=re.escape(f"there is no folder {name}; check --model")):
        find_model(name)
    for odd in ("/".join(["google-bert", ""]), ""):
        with pytest.raises(UserError, match=r"neither a folder nor the name|no model at"):
            find_model(odd)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file; give its folder"):
        find_model("file")
    assert find_model("google-bert/bert-base-uncased").source == "google-bert/bert-base-uncased"


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    """Unless the model is in the cache or the network is off, where libraries look into the cache alone."""
    asked = []

    def refuse(address, **_):
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    ref = find_model("some/thing")
    for load in (lambda: load_tokenizer(ref), lambda: load_model(ref, TASKS["sst2"])):
        with pytest.raises(UserError, match="there is no folder some/thing, and the hub cannot be reached; check --mo"):
            load()
    assert len(asked) == 2
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: "config.json")
    check_reachable(ref)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    check_reachable(ref)
    assert len(asked) == 2


def test_without_network_the_hub_is_there_as_far_as_the_cache_is(monkeypatch):
    """HF_HUB_OFFLINE says so also where somebody would answer."""
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: contextlib.nullcontext())
    for cached, offline, there in ((None, False, True), (None, True, False), ("config.json", True, True)):
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, found=cached, **__: found)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        assert hub_is_reachable() is there


def test_a_model_is_known_by_all_that_decides_its_answers(tmp_path):
    """Weights, tokenizer and configuration; saved again by another version it stays what it is."""
    folder = write_model(tmp_path / "model")
    known = folder_model(folder).identity
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "9.9"}))
    assert folder_model(folder).identity == known and folder_model(folder).is_folder
    seen = {known}
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))
    seen.add(folder_model(folder).identity)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    seen.add(folder_model(folder).identity)
    assert len(seen) == 3
