"""Training without labels: said once where a method's own losses are missed, and nowhere else."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers

import methods
from methods import Stage
from tests.test_stage_callback import ROWS, SETTINGS
from tests.tiny import batch_for, tiny_model, tiny_reducer

SAID = "trains without labels, which its own losses need"


def told(reducer, *, backward=True):
    """What two updates by a loss of logits say."""
    batch = batch_for(reducer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            logits = reducer(**batch).logits
            if backward:
                logits.square().sum().backward()
    return [str(one.message) for one in caught if SAID in str(one.message)]


@pytest.mark.parametrize("name", ["transkimmer", "ltp", "lot", "top", "tr_bert", "deebert", "pabee"])
def test_missed_losses_are_told_once(name):
    reducer = tiny_reducer(name).train()
    assert len(told(reducer)) == 1 and not told(reducer)


def test_what_is_meant_is_not_warned_of():
    """Nothing of the method's own, no pressure, frozen parts, the dense stage, evaluation, a probe."""
    for name in ("dense", "random", "power_bert"):
        assert not told(tiny_reducer(name).train())
    assert not told(tiny_reducer("transkimmer").eval())
    assert not told(tiny_reducer("transkimmer").train(), backward=False)
    assert not told(methods.create("lot", tiny_model("bert"), reg_weight=0.0).train())
    frozen = tiny_reducer("ltp").train()
    frozen.thresholds.requires_grad_(False)
    assert not told(frozen)
    dense = tiny_reducer("transkimmer").train()
    dense.begin_stage(Stage(name="fine_tune"), 1)
    assert not told(dense)


def trainer_of(folder, name, stage=None, *, callback=True, loss=None, **settings):
    args = transformers.TrainingArguments(str(folder), **(SETTINGS | {"max_steps": 1} | settings))
    callbacks = [methods.StageCallback(stage)] if callback else []
    reducer = methods.create(name, tiny_model("bert").float())
    return transformers.Trainer(reducer, args, train_dataset=ROWS, callbacks=callbacks, compute_loss_func=loss)


def test_label_smoothing_is_refused_where_it_takes_losses_away(tmp_path):
    smooth = {"label_smoothing_factor": 0.1}
    for name in ("transkimmer", "lat", "tr_bert", "transkimmer+deebert"):
        with pytest.raises(ValueError, match="label smoothing takes the labels away from the reducer"):
            trainer_of(tmp_path, name, **smooth).train()
    trainer_of(tmp_path, "dense", **smooth).train()
    trainer_of(tmp_path, "transkimmer", Stage(name="fine_tune"), **smooth).train()


def test_a_loss_function_of_the_trainer_is_warned_of(tmp_path):
    def loss(output, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(output.logits, labels)

    with pytest.warns(UserWarning, match=SAID):
        trainer_of(tmp_path, "transkimmer", callback=False, loss=loss).train()
