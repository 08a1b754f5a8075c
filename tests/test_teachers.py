"""The teacher of a stage: the one that was set, or a copy of the model as it stands when the stage begins."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import methods
from methods.tr_bert import JOINT, POLICY
from tests.tiny import batch_for, labels_for, tiny_model, tiny_reducer


def stages_of(reducer):
    """Those of the recipe that have a teacher."""
    task = SimpleNamespace(name="sst2", kind="classification", skim_weight=0.5, sequence_length=16)
    return [stage for stage in reducer.stages(task, "short") if stage.teacher is not None]


def bias_of(model):
    return model.bert.pooler.dense.bias


@pytest.mark.parametrize("name", ["tr_bert", "top", "lot", "deformer", "tr_bert+deebert"])
def test_a_stage_learns_from_the_model_as_it_stands_when_it_begins(name):
    """Each stage takes its own copy, whatever was copied before, and training moves none of it."""
    reducer = methods.create(name, tiny_model("bert"))
    assert reducer.teacher is reducer.teacher  # outside a stage, whatever the model is when one is asked for
    for value, stage in enumerate(2 * stages_of(reducer), start=1):
        bias_of(reducer.model).data.fill_(value)
        reducer.begin_stage(stage, 10)
        bias_of(reducer.model).data.fill_(-1.0)
        parts = reducer.parts.values() if name == "tr_bert+deebert" else ()
        for learner in (reducer, *parts):
            assert (bias_of(learner.teacher.model) == value).all()
        reducer.end_stage(stage)


@pytest.mark.parametrize("name", ["tr_bert", "top"])
def test_a_teacher_that_was_set_stays_until_it_is_forgotten(name):
    reducer, other = tiny_reducer(name), tiny_model("bert", seed=5)
    reducer.set_teacher(other)
    for stage in stages_of(reducer):
        reducer.begin_stage(stage, 10)
        assert torch.equal(bias_of(reducer.teacher.model), bias_of(other))
    reducer.set_teacher(None)
    reducer.begin_stage(stages_of(reducer)[-1], 10)
    assert torch.equal(bias_of(reducer.teacher.model), bias_of(reducer.model))


def test_the_joint_stage_of_tr_bert_distils(monkeypatch):
    """Also on a reducer that was never given a teacher; the policies alone learn from labels."""
    reducer = tiny_reducer("tr_bert").train()
    batch, taught, soft = batch_for(reducer), [], reducer.soft_loss
    monkeypatch.setattr(
        reducer, "soft_loss", lambda *own, **options: taught.append(reducer.stage) or soft(*own, **options)
    )
    for name in (POLICY, JOINT):
        reducer.begin_stage(next(stage for stage in stages_of(reducer) if stage.name == name), 10)
        reducer(**batch, **labels_for(reducer, batch))
    assert taught == [JOINT]


def test_a_teacher_follows_its_batch(monkeypatch):
    """Set before the reducer moved to another device."""
    reducer = methods.create("lot", tiny_model("bert").float())
    reducer.set_teacher(reducer.model)
    inputs = reducer.check_inputs(**batch_for(reducer))
    inputs.input_ids = inputs.input_ids.to("meta")

    def look(teacher, *arguments):
        raise RuntimeError(str(teacher.model.device))

    monkeypatch.setattr("methods.teacher.encode", look)
    with pytest.raises(RuntimeError, match="meta"):
        reducer.teacher.teach(inputs)
