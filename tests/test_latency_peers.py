"""Peers of the timing command: they compute the dense model, and what cannot run here is named with the reason."""

from __future__ import annotations

import importlib.util
import json
from functools import partial

import pandas as pd
import pytest
import torch

import methods
from benchmarks import latency, latency_peers
from benchmarks.cli import run_command
from benchmarks.latency_peers import absences, half_model, peer_subjects
from benchmarks.latency_profile import texts_of
from benchmarks.latency_subjects import stock_subjects
from tests.small_world import write_model, write_sentences
from tests.tiny import tiny_model

LENGTHS = [9, 4, 7]
needs_onnx = pytest.mark.skipif("onnxruntime" in absences(["onnxruntime"], "cpu"), reason="needs the extra 'peers'")


def logits(output):
    return torch.as_tensor(output[0] if isinstance(output, list) else output.logits)


def outputs(names, model):
    """Of peers, and of the stock model on the same texts, each as (subject, logits of the batch)."""
    texts = texts_of(LENGTHS, 60)
    with torch.inference_mode():
        subjects = [*stock_subjects(model, texts, ()), *peer_subjects(names, model, texts)]
        return [(subject, logits(subject.run()[0])) for subject in subjects]


@needs_onnx
def test_onnx_runtime_gives_the_stock_logits_and_eight_bits_come_near():
    model = tiny_model("bert").float()
    (stock, expected), (whole, found), (_, near) = outputs(["onnxruntime", "onnxruntime_int8"], model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    error = (near - expected).abs().max()
    assert 0 < error < 0.2 * expected.abs().max()
    assert (whole.padding, whole.method, whole.macs, whole.opaque) == ("batch", "dense", stock.macs, True)


@needs_onnx
def test_graphs_are_of_a_float32_copy(monkeypatch):
    exported = []

    def stop(reducer, path):
        exported.append(reducer.dtype)
        raise ValueError("seen")

    monkeypatch.setattr(latency_peers, "export_onnx", stop)
    model = tiny_model("distilbert").to(torch.bfloat16)
    with pytest.raises(ValueError, match="seen"):
        outputs(["onnxruntime"], model)
    assert exported == [torch.float32] and model.dtype == torch.bfloat16


def test_a_compiled_model_gives_the_stock_logits(monkeypatch):
    """Traced, without generating code, which takes a compiler minutes."""
    asked = []

    def compiled(model, **how):
        asked.append(how)
        return original(model, backend="eager", **how)

    original = torch.compile
    monkeypatch.setattr(torch, "compile", compiled)
    (stock, expected), (peer, found) = outputs(["compile"], tiny_model("bert").float())
    torch.testing.assert_close(found[0], expected[0])
    assert asked == [{"dynamic": True}] and peer.macs == stock.macs


@pytest.mark.parametrize("head", ["classification", "span_qa"])
def test_the_smaller_model_has_half_the_layers_of_the_same_width(head):
    model = tiny_model("bert", head, num_hidden_layers=4)
    large, small = (methods.create("dense", one).backbone for one in (model, half_model(model)))
    assert (small.num_layers, small.config.model_type, small.head) == (2, "distilbert", head)
    lengths = torch.tensor(LENGTHS)
    ratio = small.layer_macs(lengths) / large.layer_macs(lengths)
    assert torch.equal(ratio, torch.ones(3)) and half_model(model).dtype == model.dtype


def test_what_cannot_run_here_has_a_reason(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    monkeypatch.setenv("CXX", "no-such-compiler")
    reasons = absences(latency_peers.PEERS, "cpu")
    assert list(reasons) == ["onnxruntime", "onnxruntime_int8", "compile"]
    assert "onnxscript not installed (pip install -e '.[peers]')" in reasons["onnxruntime"]
    assert "CXX" in reasons["compile"]
    assert "on the CPU only" in absences(["onnxruntime"], "cuda")["onnxruntime"]
    assert absences(["compile"], "cuda") == {}


def test_the_command_times_peers_beside_the_methods_and_says_which_are_absent(tmp_path, monkeypatch, capsys):
    write_model(tmp_path / "model")
    write_sentences(tmp_path / "data", rows=8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(latency_peers, "_absence", partial(absence_of, latency_peers._absence))
    arguments = ["--model", "model", "--data-dir", "data", "--tasks", "mood", "--device", "cpu", "--quiet"]
    arguments += ["--results", "r", "--methods", "transkimmer", "--schedule", "1.2x", "--batch-sizes", "2"]
    arguments += ["--rounds", "2", "--peers", "onnxruntime", "distilbert", "--times-only"]
    assert run_command(latency.main, arguments) == 0
    assert "onnxruntime is left out: onnx is not here" in " ".join(capsys.readouterr().out.split())
    (path,) = (tmp_path / "r").rglob("interleaved-*.json")
    record = json.loads(path.read_text())
    assert record["config"]["extra"]["peers"] == ["distilbert"]
    assert record["metrics"]["peers"]["absent"] == {"onnxruntime": "onnx is not here"}
    subjects = {subject["key"]: subject for subject in record["metrics"]["subjects"]}
    assert {"peer-distilbert", "transkimmer@1.2x"} < set(subjects)
    assert all(len(one["wall_s"]) == 2 and "overhead" not in one for one in subjects.values())
    assert subjects["peer-distilbert"]["against"]["batch"]["flops"] > 1.2
    frame = pd.read_csv(next((tmp_path / "r").rglob("latency.csv")))
    assert frame["overhead"].isna().all() and frame["realisation"].notna().all()
    assert "Left out: onnxruntime, onnx is not here." in next((tmp_path / "r").rglob("latency.md")).read_text()


def absence_of(original, name, device):
    return "onnx is not here" if name == "onnxruntime" else original(name, device)
