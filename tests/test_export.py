"""Exported reducers say what the packed ones say: as programs of torch.export, and as ONNX files in ONNX Runtime."""

from __future__ import annotations

import pytest
import torch

import methods
from methods.export import INPUTS, MaskedModel, export_onnx, export_program
from methods.packing import masked_rank
from tests.cases import CASES
from tests.tiny import batch_for, logits_of, tiny_model, tiny_reducer
from tests.told import Told

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


# Every method once, on families and heads in turn.
SUBJECTS = [
    ("dense", "roberta", "classification"),
    ("transkimmer", "distilbert", "token_classification"),
    ("power_bert", "electra", "regression"),
    ("ltp", "albert", "classification"),
    ("lot", "bert", "classification"),
    ("top", "bert", "classification"),
    ("deebert", "bert", "classification"),
    ("pabee", "bert", "classification"),
    ("deformer", "bert", "classification"),
    ("tr_bert", "bert", "classification"),
    ("lat", "bert", "span_qa"),
    ("random", "modernbert_mean", "classification"),
    ("transkimmer+deebert", "modernbert", "classification"),
]


def test_every_method_is_exported_below():
    assert set(CASES) <= {name for name, *_ in SUBJECTS}


@pytest.mark.parametrize(("name", "family", "head"), SUBJECTS)
def test_a_program_and_an_onnx_file_give_the_packed_logits(name, family, head, monkeypatch, tmp_path):
    reducer = single(name, family, head)
    program = export_program(reducer)
    agrees(reducer, program.module())
    runtime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    monkeypatch.setattr("methods.export.export_program", lambda *args, **kwargs: program)  # exported once, above
    export_onnx(reducer, tmp_path / "model.onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(tmp_path / "model.onnx", options)
    assert [node.name for node in session.get_inputs()] == list(INPUTS)
    assert [node.name for node in session.get_outputs()] == MaskedModel(reducer).names
    agrees(reducer, lambda *tensors: session.run(None, dict(zip(INPUTS, (x.numpy() for x in tensors), strict=True))))


def agrees(reducer, graph):
    """The graph gives the logits of packed mode, on other numbers and lengths of texts than it was made from."""
    for lengths in SHAPES:
        inputs = inputs_for(reducer, lengths)
        outputs = [torch.as_tensor(output) for output in graph(*inputs.values())]
        found = as_logits(outputs, inputs["attention_mask"])
        torch.testing.assert_close(found, expected(reducer, inputs), rtol=1e-4, atol=1e-4)


def test_what_is_no_graph_is_refused(build):
    """A decision that looks at its own result, as no method here does."""
    reducer = build(Told).float()
    reducer.plan["after_layer", 0] = lambda state: methods.Decision(keep=state.live) if state.hidden.sum() > 0 else None
    with pytest.raises(ValueError, match="told cannot be exported as a graph: "):
        export_program(reducer)
    with pytest.raises(ValueError, match="packed mode cannot be exported: how many tokens survive depends on the text"):
        export_program(single("transkimmer"), mode="packed")
    with pytest.raises(ValueError, match=r"call eval\(\) before exporting"):
        export_program(single("transkimmer").train())


def test_a_graph_of_pairs_does_not_look_for_the_second_text(monkeypatch):
    """It cannot; a text alone then runs whole, as with `single_texts`."""
    reducer = methods.create("deformer", tiny_model("bert"))
    ids = torch.ones(1, 5, dtype=torch.long)
    with pytest.raises(ValueError, match="row 0 has no second text"):
        reducer.check_inputs(ids)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert not reducer.check_inputs(ids).segments.any()


def test_without_the_extra_the_message_names_it(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    pytest.importorskip("onnx", reason="the extra `export` is not installed")
    with pytest.raises(ImportError, match=r"onnxscript is missing; install the extra: pip install -e '.\[export\]'"):
        export_onnx(single("dense"), tmp_path / "model.onnx")


def test_ranks_in_a_graph_are_those_of_the_sort(monkeypatch):
    """Ties go to the earlier one, and what is masked ranks behind."""
    values = torch.randint(0, 5, (6, 9)).double()
    mask = torch.rand(6, 9) < 0.7
    sorted_ranks = masked_rank(values, mask)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.equal(masked_rank(values, mask), sorted_ranks)
