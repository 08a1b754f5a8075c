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
        (
            torch.zeros(5, 3, dtype=torch.long),
            None,
            r"class ids must be \(batch,\) whole numbers, got torch.int64 \(5, 3\)",
        ),
        (torch.zeros(5), "single_label_classification", r"whole numbers, got torch.float32 \(5,\)"),
        (torch.zeros(5), "regression", r"values must be \(batch, 3\), got \(5,\)"),
    ],
)
def test_labels_of_another_shape_are_refused(labels, kind, message):
    reducer = methods.create("dense", tiny_model("bert", problem_type=kind))
    with pytest.raises(ValueError, match=message):
        reducer(**make_batch(), labels=labels)
    assert reducer.config.problem_type == kind


KINDS = {  # labels of five texts, head, and the configuration that goes with them
    "classes": (torch.tensor([0, 1, 2, 1, 0]), "classification", {}),
    "classes, some none": (torch.tensor([0, -100, 2, 1, -100]), "classification", {}),
    "classes in a column": (torch.tensor([[0], [1], [2], [1], [0]]), "classification", {}),
    "several labels": (TOGETHER, "classification", {}),
    "one label that may hold": (TOGETHER[:, :1], "classification", {"num_labels": 1, "problem_type": MULTI}),
    "values": (torch.linspace(-1, 1, 5).double(), "regression", {}),
    "values in a column": (torch.linspace(-1, 1, 5).double().unsqueeze(1), "regression", {}),
    "several values": (TOGETHER - 0.3, "classification", {"problem_type": "regression"}),
}


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_stock_models(kind, family):
    labels, head, changes = KINDS[kind]
    reducer = methods.create("dense", tiny_model(family, head, **changes)).eval()
    batch = batch_for(reducer)
    with torch.no_grad():
        found = reducer(**batch, labels=labels).loss
        expected = tiny_model(family, head, **changes)(**batch, labels=labels).loss
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("places", ["within", "outside", "column"])
def test_the_loss_of_spans_is_the_stock_models(places):
    """Starts and ends behind the text have no part in the mean, each for itself."""
    start, end = torch.tensor([1, 2, 0]), torch.tensor([3, 3, 8])
    if places == "outside":
        start, end = torch.tensor([1, 99, 0]), torch.tensor([99, 99, 8])
    if places == "column":
        start, end = start.unsqueeze(1), end.unsqueeze(1)
    batch = make_batch((9, 9, 9)) | {"start_positions": start, "end_positions": end}
    with torch.no_grad():
        found = tiny_reducer("dense", head="span_qa")(**batch).loss
        expected = tiny_model("bert", "span_qa")(**batch).loss
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)


def test_padding_has_no_part_in_the_loss_of_spans():
    """Unlike a stock model's, whose softmax sees it: a text has the same loss, however far it is padded."""
    spans = {"start_positions": torch.tensor([1, 0]), "end_positions": torch.tensor([3, 2])}
    with torch.no_grad():
        losses = [
            tiny_reducer("dense", head="span_qa")(**make_batch((9, 7), padded_to=n), **spans).loss for n in (9, 20)
        ]
    torch.testing.assert_close(*losses)


def test_a_batch_without_any_class_has_no_loss():
    with torch.no_grad():
        assert tiny_reducer("dense")(**make_batch((5, 4)), labels=torch.tensor([-100, -100])).loss == 0


def test_lot_learns_from_texts_without_a_class_beside_others():
    reducer = tiny_reducer("lot").train()
    output = reducer(**make_batch((9, 7)), labels=torch.tensor([1, -100]))
    output.loss.backward()
    assert all(term.isfinite() for term in output.losses.values())
