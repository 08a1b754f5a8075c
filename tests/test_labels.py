"""Labels of the kinds that stock models take: what the loss is, and what the model remembers of them."""

from __future__ import annotations

import pytest
import torch

import methods
from tests.cases import CASES
from tests.tiny import batch_for, make_batch, tiny_model, tiny_reducer

MULTI = "multi_label_classification"
TOGETHER = torch.tensor([[1.0, 0, 1], [0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]).double()


@pytest.mark.parametrize(
    "name", [name for name in CASES if "multi_label" not in methods.lookup(name).traits.unsupported]
)
def test_labels_that_may_hold_together_train_every_method(name, tmp_path):
    """Float labels are noted as the stock model notes them, and saved."""
    reducer = tiny_reducer(name).train()
    output = reducer(**batch_for(reducer), labels=TOGETHER)
    output.loss.backward()
    assert output.loss.isfinite()
    assert reducer.config.problem_type == reducer.model.config.problem_type == MULTI
    reducer.save_pretrained(tmp_path)
    loaded = methods.load(str(tmp_path))
    assert loaded.backbone.multi_label and loaded.config.problem_type == MULTI


def test_stock_models_note_the_same():
    model = tiny_model("bert")
    model(**make_batch(), labels=TOGETHER)
    assert model.config.problem_type == MULTI


def test_deebert_refuses_labels_that_may_hold_together():
    reason = "deebert does not support multi_label: the entropy of the exit rule"
    with pytest.raises(ValueError, match=reason):
        methods.create("deebert", tiny_model("bert", problem_type=MULTI))
    reducer = tiny_reducer("deebert")
    with pytest.raises(ValueError, match=reason):
        reducer(**make_batch(), labels=TOGETHER)
    assert reducer.config.problem_type is None and reducer.model.config.problem_type is None


def test_pabee_compares_sets_once_labels_were_seen():
    """The largest of several logits is no answer where labels may hold together."""
    reducer, logits = tiny_reducer("pabee"), torch.tensor([[3.0, 2.0, -1.0]])
    assert reducer._answers(logits).tolist() == [[0]]
    with torch.no_grad():
        reducer(**make_batch(), labels=TOGETHER)
    assert reducer._answers(logits).tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        (TOGETHER[:, :2], None, r"labels that may hold together must be \(batch, 3\), got \(5, 2\)"),
        (TOGETHER[:, 0], None, r"must be \(batch, 3\), got \(5,\)"),
        (torch.zeros(5, dtype=torch.long), MULTI, r"must be \(batch, 3\), got \(5,\)"),
    ],
)
def test_labels_of_another_shape_are_refused(labels, kind, message):
    reducer = methods.create("dense", tiny_model("bert", problem_type=kind))
    with pytest.raises(ValueError, match=message):
        reducer(**make_batch(), labels=labels)
    assert reducer.config.problem_type == kind
