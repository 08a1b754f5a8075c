"""A stage inside `Trainer`: its optimizer trains what the stage trains, as fast as the recipe says."""

from __future__ import annotations

import os
import sys

import pytest
import torch
import transformers

import methods
from methods import ParameterGroup, Stage, StageCallback
from tests.test_kills import in_child
from tests.test_team import free_port, statuses
from tests.tiny import tiny_model, tiny_reducer

ROWS = [
    {"input_ids": [1] + [5 + (i * 7 + j) % 50 for j in range(8)], "attention_mask": [1] * 9, "label": i % 3}
    for i in range(24)
]
SETTINGS = {
    "use_cpu": True,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "max_steps": 6,
    "per_device_train_batch_size": 4,
}


class _Task:
    name, kind, skim_weight, sequence_length = "mood", "classification", 0.5, 16


def stage_of(reducer, name, recipe="short"):
    return next(stage for stage in reducer.stages(_Task(), recipe) if stage.name == name)


def prepared(folder, reducer, stage, **settings):
    """A Trainer of `stage`; dropout is off."""
    for module in reducer.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    args = transformers.TrainingArguments(str(folder), **(SETTINGS | settings))
    return transformers.Trainer(reducer, args, train_dataset=ROWS, eval_dataset=ROWS, callbacks=[StageCallback(stage)])


def weights_of(reducer):
    return {name: weight.detach().clone() for name, weight in reducer.named_parameters()}


def moved(reducer, before):
    return {name for name, weight in reducer.named_parameters() if not torch.equal(weight, before[name])}


def test_power_bert_searches_its_counts(tmp_path):
    """Retention is made as the stage begins, after the optimizer; the recipe says how far it travels."""
    reducer = methods.create("power_bert", tiny_model("bert").float(), max_length=16, search_weight=1.0)
    trainer = prepared(tmp_path, reducer, stage_of(reducer, "configuration_search"), max_steps=30)
    trainer.train()
    assert max(reducer.options.retention_configuration) < 8 and reducer.retention is None
    parameters = set(reducer.parameters())
    assert all(p in parameters for group in trainer.optimizer.param_groups for p in group["params"])
    assert set(trainer.optimizer.state) <= parameters


def test_multipliers_climb(tmp_path):
    """Too much is computed, and the longer so the more it has to cost."""
    reducer = methods.create("top", tiny_model("bert").float(), bins=5, first_location=1, target_sparsity=0.9)
    prepared(tmp_path, reducer, stage_of(reducer, "prune")).train()
    assert reducer.lambda_2 > 0 > reducer.lambda_1


@pytest.mark.parametrize(
    ("name", "stage", "trained"),
    [
        ("deebert", "off_ramps", lambda name: "off_ramps" in name),
        ("tr_bert", "policy", lambda name: "policies" in name),
        ("ltp", "hard", lambda name: name != "thresholds"),
        ("top", "prune", lambda name: "embeddings" not in name),
        ("transkimmer+deebert", "deebert:off_ramps", lambda name: "off_ramps" in name),
    ],
)
def test_what_a_stage_does_not_train_stays(name, stage, trained, tmp_path):
    reducer = tiny_reducer(name).float()
    before = weights_of(reducer)
    prepared(tmp_path, reducer, stage_of(reducer, stage, "paper"), weight_decay=0.1).train()
    changed = moved(reducer, before)
    assert changed and all(trained(one) for one in changed)
    assert all(parameter.requires_grad for parameter in reducer.parameters())


def test_what_the_user_froze_stays(tmp_path):
    reducer = methods.create("ltp", tiny_model("bert").float())
    reducer.model.bert.embeddings.requires_grad_(False)
    before = weights_of(reducer)
    prepared(tmp_path, reducer, stage_of(reducer, "soft")).train()
    changed = moved(reducer, before)
    assert "thresholds" in changed and not any("embeddings" in name for name in changed)
    assert not any(p.requires_grad for p in reducer.model.bert.embeddings.parameters())


def test_groups_have_the_recipes_rates_and_the_trainers_schedule(tmp_path):
    """One rate follows the schedule, one keeps its own decay, one is such that the rates add up to its travel."""
    reducer = methods.create("top", tiny_model("bert").float(), bins=5, first_location=1)
    stage = stage_of(reducer, "prune").but(
        groups=(
            ParameterGroup(patterns=("*_loga",), travel=0.5),
            ParameterGroup(patterns=("lambda_*",), learning_rate=2.0, decay="constant", maximize=True),
            ParameterGroup(but_not=("*.embeddings.*",), learning_rate=1e-3, weight_decay=0.1),
        )
    )
    trainer, seen = prepared(tmp_path, reducer, stage, learning_rate=7.0), []

    class Watch(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
            seen.append([(g["lr"], g["weight_decay"], g["maximize"]) for g in optimizer.param_groups])

    trainer.add_callback(Watch())
    trainer.train()
    travelled, constant, falling = zip(*seen, strict=True)
    assert sum(rate for rate, *_ in travelled) == pytest.approx(0.5)
    assert constant == ((2.0, 0.0, True),) * 6
    assert [rate for rate, *_ in falling] == pytest.approx([1e-3 * (6 - done) / 6 for done in range(6)])
    assert falling[0][1:] == (0.1, False)
    again = trainer.optimizer.param_groups
    assert len(again) == 2 and not any(group["maximize"] for group in again)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    ends = []
    for size, parts in ((8, 1), (4, 2)):
        torch.manual_seed(0)
        reducer = methods.create("deebert", tiny_model("bert").float())
        accumulated = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts, "max_steps": 3}
        prepared(tmp_path, reducer, stage_of(reducer, "off_ramps"), **accumulated).train()
        ends.append(weights_of(reducer))
    for name, weight in ends[0].items():
        torch.testing.assert_close(ends[1][name], weight, rtol=1e-3, atol=1e-5)


def fresh_top():
    torch.manual_seed(0)
    model = tiny_model("bert").float()
    reducer = methods.create("top", model, bins=5, first_location=1)
    reducer.set_teacher(model)
    return reducer


def test_a_stage_goes_on_from_a_checkpoint(tmp_path):
    """Optimizer, schedule and buffers come from the checkpoint of the Trainer, although it groups parameters anew."""
    saving = {"save_strategy": "steps", "save_steps": 3}
    whole = fresh_top()
    prepared(tmp_path, whole, stage_of(whole, "prune"), **saving).train()
    resumed = fresh_top()
    trainer = prepared(tmp_path, resumed, stage_of(resumed, "prune"), **saving)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert torch.equal(resumed.texts, whole.texts) and int(whole.texts.sum()) == 24
    for name, weight in weights_of(whole).items():
        torch.testing.assert_close(weights_of(resumed)[name], weight, msg=name)


@pytest.mark.filterwarnings("ignore:PoWER-BERT search")  # a few updates lower no count
@pytest.mark.parametrize(
    ("method", "name", "said"),
    [
        ("power_bert", "configuration_search", "makes retention as it begins, so it cannot go on from a checkpoint"),
        ("top", "prune", "does not hold the teacher that stage prune learns from; give it by `reducer.set_teacher"),
    ],
)
def test_what_cannot_go_on_says_so(method, name, said, tmp_path):
    for resume in (None, str(tmp_path / "checkpoint-1")):
        reducer = methods.create(method, tiny_model("bert").float())
        settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1 if resume is None else 2}
        trainer = prepared(tmp_path, reducer, stage_of(reducer, name), **settings)
        if resume is None:
            trainer.train()
            continue
        with pytest.raises(ValueError, match=said):
            trainer.train(resume_from_checkpoint=resume)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optim": "adafactor"}, 'which Adafactor cannot do; set optim="adamw_torch"'),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"},
            "got ReduceLROnPlateau; set lr_sched",
        ),
    ],
)
def test_an_optimizer_or_schedule_that_does_not_fit_is_refused(settings, said, tmp_path):
    reducer = methods.create("top", tiny_model("bert").float(), bins=5, first_location=1)
    trainer = prepared(tmp_path, reducer, stage_of(reducer, "prune"), **settings)
    with pytest.raises(ValueError, match=said):
        trainer.train()


def test_one_trainer_trains_twice(tmp_path):
    """The optimizer is the Trainer's own again in between."""
    reducer = methods.create("deebert", tiny_model("bert").float())
    trainer = prepared(tmp_path, reducer, stage_of(reducer, "off_ramps"))
    trainer.train()
    before = weights_of(reducer)
    trainer.train()
    assert moved(reducer, before) and all("off_ramps" in name for name in moved(reducer, before))
    trainer.remove_callback(StageCallback)
    trainer.train()
    assert any("encoder" in name for name in moved(reducer, before))


class Adapted(torch.nn.Module):
    """As PEFT wraps a model."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def get_base_model(self):
        return self.inner

    def forward(self, **batch):
        return self.inner(**batch)


class Distributed(torch.nn.Module):
    """As several processes wrap a model."""

    def __init__(self, inner):
        super().__init__()
        self.module = inner

    def forward(self, **batch):
        return self.module(**batch)


@pytest.mark.parametrize("wrap", [Adapted, Distributed, lambda reducer: Adapted(Distributed(reducer))])
def test_a_wrapped_reducer_is_told(wrap, tmp_path, monkeypatch):
    """How far training is, that an update is done, and what the stage trains."""
    reducer, seen = methods.create("deebert", tiny_model("bert").float()), []
    monkeypatch.setattr(reducer, "after_update", lambda: seen.append((reducer.stage, reducer.progress)))
    before = weights_of(reducer)
    named = {"remove_unused_columns": False, "label_names": ["labels"]}
    prepared(tmp_path, wrap(reducer), stage_of(reducer, "off_ramps"), max_steps=4, **named).train()
    assert seen == [("off_ramps", done / 4) for done in range(4)]
    assert moved(reducer, before) and all("off_ramps" in name for name in moved(reducer, before))
    assert (reducer.stage, reducer.progress) == (None, 1.0)


def test_what_holds_no_reducer_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"for a reducer, as `methods\.create` makes it, got BertForSequenceClass"):
        prepared(tmp_path, tiny_model("bert").float(), None).train()


def test_a_stage_without_a_match_is_refused(tmp_path):
    reducer = methods.create("dense", tiny_model("bert").float())
    stage = Stage(name="none", groups=(ParameterGroup(patterns=("predictors.*",), learning_rate=1e-3),))
    with pytest.raises(ValueError, match="no parameter of DenseForSequenceClassification matches predictors"):
        prepared(tmp_path, reducer, stage).train()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")
@pytest.mark.parametrize(("method", "stage"), [("ltp", "soft"), ("ltp", "hard"), ("top", "prune")])
def test_two_processes_train_what_one_does(method, stage, tmp_path):
    """Each on half of every batch, as `torchrun` starts them; ToP draws its gates, others for another batch."""

    def trained(batch):
        reducer = tiny_reducer(method)
        prepared(tmp_path / "out", reducer, stage_of(reducer, stage), per_device_train_batch_size=batch).train()
        return weights_of(reducer)

    def process(rank):
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        # Unless told, accelerate takes several threads, and a forked process has none of its parent's.
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        torch.save(trained(2), tmp_path / f"weights{rank}.pt")
        return 0

    port = free_port()
    children = [in_child(lambda rank=rank: process(rank), tmp_path / f"output{rank}") for rank in range(2)]
    assert statuses(children) == [0, 0], (tmp_path / "output0").read_text()
    first, second = (torch.load(tmp_path / f"weights{rank}.pt") for rank in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    if method != "top":
        torch.testing.assert_close(first, trained(4), rtol=1e-5, atol=1e-6)
