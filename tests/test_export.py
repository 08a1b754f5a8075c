"""Exported reducers say what the packed ones say: as programs of torch.export, and as ONNX files in ONNX Runtime."""

from __future__ import annotations

import pytest
import torch

import methods
from methods.export import INPUTS, MaskedModel, export_onnx, export_program
from methods.packing import masked_rank
from tests.tiny import batch_for, logits_of, tiny_reducer

SHAPES = ((9, 4, 1, 7, 12), (14, 3))  # other numbers and lengths of texts than the example's


def single(name, family="bert", head="classification"):
    return tiny_reducer(name, family, head).float()


def inputs_for(reducer, lengths):
    batch = batch_for(reducer, lengths)
    return {name: batch.get(name, torch.zeros_like(batch["input_ids"])) for name in INPUTS}


def expected(reducer, inputs):
    with torch.no_grad():
        return logits_of(reducer(**inputs), inputs["attention_mask"])


def as_logits(outputs, mask):
    """The tensors of a graph as `logits_of` has a model's."""
    names = ("logits",) if len(outputs) == 1 else ("start_logits", "end_logits")
    return logits_of(methods.ReducerOutput(**dict(zip(names, outputs, strict=True))), mask)


@pytest.mark.parametrize(
    ("name", "family", "head"),
    [
        ("dense", "roberta", "classification"),
        ("transkimmer", "distilbert", "token_classification"),
        ("transkimmer", "modernbert", "classification"),
        ("power_bert", "electra", "regression"),
        ("ltp", "albert", "classification"),
        ("lot", "bert", "classification"),
        ("top", "bert", "classification"),
        ("deebert", "bert", "classification"),
        ("pabee", "bert", "classification"),
        ("tr_bert", "bert", "classification"),
        ("lat", "bert", "span_qa"),
        ("random", "bert", "classification"),
        ("transkimmer+deebert", "bert", "classification"),
    ],
)
def test_a_program_gives_the_packed_logits(name, family, head):
    reducer = single(name, family, head)
    program = export_program(reducer).module()
    for lengths in SHAPES:
        inputs = inputs_for(reducer, lengths)
        found = as_logits(program(*inputs.values()), inputs["attention_mask"])
        torch.testing.assert_close(found, expected(reducer, inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "head"), [("transkimmer", "classification"), ("lat", "span_qa")])
def test_an_onnx_file_gives_the_packed_logits(name, head, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    reducer = single(name, head=head)
    export_onnx(reducer, tmp_path / "model.onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(tmp_path / "model.onnx", options)
    assert [node.name for node in session.get_inputs()] == list(INPUTS)
    assert [node.name for node in session.get_outputs()] == MaskedModel(reducer).names
    for lengths in SHAPES:
        inputs = inputs_for(reducer, lengths)
        outputs = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        found = as_logits([torch.from_numpy(output) for output in outputs], inputs["attention_mask"])
        torch.testing.assert_close(found, expected(reducer, inputs), rtol=1e-4, atol=1e-4)


def test_what_is_no_graph_is_refused():
    """DeFormer looks at each text for its second one."""
    with pytest.raises(ValueError, match="deformer cannot be exported as a graph: "):
        export_program(single("deformer"))
    with pytest.raises(ValueError, match=r"call eval\(\) before exporting"):
        export_program(single("transkimmer").train())


def test_without_the_extra_the_message_names_it(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    pytest.importorskip("onnx", reason="the extra `export` is not installed")
    with pytest.raises(
        ImportError, match=r"onnxscript is missing; install the extra: pip install 'skimbench\[export\]'"
    ):
        export_onnx(single("dense"), tmp_path / "model.onnx")


def test_ranks_in_a_graph_are_those_of_the_sort(monkeypatch):
    """Ties go to the earlier one, and what is masked ranks behind."""
    values = torch.randint(0, 5, (6, 9)).double()
    mask = torch.rand(6, 9) < 0.7
    sorted_ranks = masked_rank(values, mask)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.equal(masked_rank(values, mask), sorted_ranks)
