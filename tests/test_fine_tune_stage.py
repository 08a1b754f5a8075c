"""The first stage of a published recipe trains the dense model, whatever the method does later."""

from __future__ import annotations

import pytest
import torch

import methods
from benchmarks.tasks import get_task
from methods.recipes import FINE_TUNE
from tests.cases import CASES, pairs
from tests.tiny import labels_for, make_batch, tiny_model, tiny_reducer

TASK = get_task("mrpc")
TUNED = [name for name in CASES if any(s.name == FINE_TUNE for s in methods.lookup(name).recipe_stages(TASK))]


def begun(reducer, name):
    stage = next(stage for stage in reducer.stages(TASK) if stage.name == name)
    reducer.begin_stage(stage, 4)
    for module in reducer.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return stage


@pytest.mark.parametrize("name", TUNED)
def test_it_trains_the_dense_model(name):
    options = CASES[name].options if name in ("ltp", "top") else {}
    model = tiny_model("bert")
    reducer = methods.create(name, model, **options).train()
    begun(reducer, FINE_TUNE)
    batch = pairs(make_batch())
    labels = labels_for(reducer, batch)
    output, stock = reducer(**batch, **labels), model(**batch, **labels)
    assert set(output.losses) == {"task"}
    torch.testing.assert_close(output.loss.double(), stock.loss)
    torch.testing.assert_close(output.logits, stock.logits)


@pytest.mark.parametrize("name", TUNED)
def test_attention_drops_out_as_in_the_dense_model(name):
    """Whatever the method does about it later."""
    none = {"hidden_dropout_prob": 0.0, "classifier_dropout": 0.0}
    model = tiny_model("bert", attention_probs_dropout_prob=0.5, **none)
    reducer, batch = methods.create(name, model).train(), make_batch()
    reducer.begin_stage(next(stage for stage in reducer.stages(TASK) if stage.name == FINE_TUNE), 4)
    with torch.no_grad():
        assert not torch.allclose(reducer(**batch).logits, reducer(**batch).logits)


@pytest.mark.parametrize("mode", ["masked", "packed"])
@pytest.mark.parametrize("name", ["ltp", "top"])
def test_nothing_is_pruned_before_its_end(name, mode):
    reducer = tiny_reducer(name)
    CASES[name].undecided(reducer)
    stage, batch = begun(reducer, FINE_TUNE), make_batch()
    with torch.no_grad(), reducer.mode(mode):
        torch.testing.assert_close(reducer(**batch).logits, reducer.model.eval()(**batch).logits)
        reducer.end_stage(stage)
        assert (reducer(**batch).trace.ffn_tokens[:, -1] < make_batch()["attention_mask"].sum(dim=1)).any()


def test_top_learns_from_itself_as_it_was_when_pruning_began():
    """Unless a teacher was set, which stays."""
    reducer = methods.create("top", tiny_model("bert"), bins=5, first_location=1).train()
    batch = make_batch()
    labels = labels_for(reducer, batch)
    reducer(**batch, **labels)  # outside of stages: a teacher was needed
    tuned = begun(reducer, FINE_TUNE)
    with torch.no_grad():
        reducer.model.classifier.weight.add_(1.0)
    reducer(**batch, **labels)
    reducer.end_stage(tuned)
    begun(reducer, "prune")
    assert torch.equal(reducer.teacher.model.classifier.weight, reducer.model.classifier.weight)
    reducer.set_teacher(tiny_model("bert"))
    given = reducer.teacher
    begun(reducer, "prune")
    assert reducer.teacher is given
