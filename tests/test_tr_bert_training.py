"""TR-BERT in training: losses, stages and recipe; [n] is the n-th invariant of the method notes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import methods
from benchmarks.data import Feature
from benchmarks.train import Compute, train_stage
from methods import ParameterGroup
from methods.recipes import FINE_TUNE
from methods.tr_bert import INITIALISE, JOINT, POLICY
from tests.tiny import HEADS, batch_for, labels_for, make_batch, tiny_model
from tests.undecided import undecided_tr_bert

# Losses --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_distillation_from_itself_has_no_gradient(head):
    """[15] Student = teacher: the loss is the teacher's entropy (regression: 0), its slope in the logits 0."""
    reducer, batch = undecided_tr_bert(head), make_batch((9, 7))
    taught = reducer.teacher.teach(reducer.check_inputs(**batch)).logits
    logits = taught.clone().requires_grad_()
    real = batch["attention_mask"].bool()
    loss = reducer.soft_loss(logits, taught, real=real if head == "token_classification" else None)
    entropy = torch.zeros(2)
    if head == "token_classification":
        rows = (
            torch.distributions.Categorical(logits=row[mask].float()) for row, mask in zip(taught, real, strict=True)
        )
        entropy = torch.stack([row.entropy().mean() for row in rows])
    elif head != "regression":
        distribution = torch.distributions.Categorical(logits=taught.float().transpose(1, -1))
        entropy = distribution.entropy().view(2, -1).sum(dim=1)
    torch.testing.assert_close(loss, entropy, rtol=1e-5, atol=1e-6)
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    assert slope.abs().max() < 1e-6


def test_several_labels_at_once_are_distilled_one_by_one():
    reducer = undecided_tr_bert()
    taught = torch.randn(3, 3, requires_grad=True)
    loss = reducer.soft_loss(taught, taught.detach(), multi_label=True)
    (slope,) = torch.autograd.grad(loss.sum(), taught)
    assert loss.shape == (3,) and slope.abs().max() < 1e-6


def test_span_losses_are_mixed_as_published():
    """Section 2.11: the mean of start and end against labels, their sum against a teacher; or one rule for both."""
    reducer = undecided_tr_bert("span_qa")
    logits, taught, labels = torch.randn(2, 5, 2), torch.randn(2, 5, 2), torch.tensor([[0, 3], [1, 2]])
    values = {}
    for rule in ("mixed", "mean", "sum"):
        reducer.set_options(span_loss=rule)
        values[rule] = (reducer.gold_loss(logits, labels), reducer.soft_loss(logits, taught))
    for place, like in ((0, "mean"), (1, "sum")):
        torch.testing.assert_close(values["mixed"][place], values[like][place])
        torch.testing.assert_close(values["sum"][place], 2 * values["mean"][place])


@pytest.mark.parametrize("reward", ["soft", "gold"])
def test_what_is_rewarded_and_what_is_learned(reward, monkeypatch):
    """6.4: with a teacher the loss is soft, the reward soft or gold; without one, and in the policy stage, gold."""
    reducer, batch = undecided_tr_bert(kd_reward=reward, replicas=2), make_batch((9, 7))
    gold, soft = torch.tensor([1.0, 2, 3, 4]), torch.tensor([5.0, 6, 7, 8])
    seen = []
    monkeypatch.setattr(reducer, "gold_loss", lambda *arguments: gold)
    monkeypatch.setattr(reducer, "soft_loss", lambda *arguments, **options: soft)
    monkeypatch.setattr(reducer, "rewards", lambda losses, *rest: seen.append(losses) or -losses)
    labels = {"labels": torch.tensor([0, 1])}
    reducer.train()
    assert set(reducer(**batch, **labels).losses) == {"task", "policy"} and torch.equal(seen.pop(), gold)
    reducer.set_teacher(reducer.model)
    assert reducer(**batch, **labels).losses["task"] == soft.mean()
    assert torch.equal(seen.pop(), soft if reward == "soft" else gold)
    reducer.stage = POLICY
    assert set(reducer(**batch, **labels).losses) == {"policy"} and torch.equal(seen.pop(), gold)
    reducer.stage = FINE_TUNE
    output = reducer(**batch, **labels)
    assert set(output.losses) == {"task"} and (output.trace.keep_ratios() == 1).all() and not seen


# Recipe --------------------------------------------------------------------------------------------------------------


def test_what_each_stage_trains():
    """[12] The policy stage leaves the backbone bit for bit; the joint stage changes both."""
    torch.manual_seed(0)
    reducer = methods.create("tr_bert", tiny_model("bert", num_hidden_layers=4).float(), replicas=2)
    rows = [
        Feature(index=i, input_ids=[2, *range(5, 9 + i % 5)], label=i % 3, truncated=False, relevant=[])
        for i in range(20)
    ]
    stub = SimpleNamespace(name="imdb", sequence_length=16)
    for stage in reducer.stages(stub)[1:]:
        before = {name: value.clone() for name, value in reducer.state_dict().items()}
        stage = stage.but(
            epochs=2,
            batch_size=4,
            groups=tuple(ParameterGroup(patterns=g.patterns, learning_rate=1e-3) for g in stage.groups),
        )
        assert train_stage(reducer, stage, rows, 0, seed=1, compute=Compute())["updates"] == 10
        changed = {name for name, value in reducer.state_dict().items() if not torch.equal(before[name], value)}
        assert any(name.startswith("policies") for name in changed)
        assert any(name.startswith("model.bert.encoder") for name in changed) is (stage.name == JOINT)


@pytest.mark.parametrize(
    ("task", "alphas", "guide_rate", "rate", "batch_size"),
    [
        ("squad_v2", (5, 5), 0.2, 5e-5, 8),
        ("yelp", (2, 0.5), 0.5, 3e-5, 8),
        ("20news", (1, 1), 0.5, 3e-5, 8),
        ("imdb", (1, 1), 0.5, 3e-5, 32),
    ],
)
def test_published_recipe(task, alphas, guide_rate, rate, batch_size):
    """Section 3; the heuristic initialisation is IMDB's alone."""
    stub = SimpleNamespace(name=task, sequence_length=512)
    reducer = undecided_tr_bert()
    options, stages = reducer.task_options(stub), reducer.stages(stub)
    assert (options["policy_length_weight"], options["length_weight"]) == alphas
    assert options["guide_rate"] == guide_rate and options["max_length"] == 512
    names = [FINE_TUNE, *([INITIALISE] if task == "imdb" else []), POLICY, JOINT]
    assert [stage.name for stage in stages] == names
    for stage in stages:
        assert (stage.groups[0].learning_rate, stage.batch_size) == (rate, batch_size)
        assert stage.epochs == (5 if stage.name == FINE_TUNE and task == "imdb" else 3)
        assert (stage.warmup, stage.max_grad_norm, stage.decay, stage.adam_epsilon) == (0.1, 1.0, "linear", 1e-8)
        frozen = stage.name in (INITIALISE, POLICY)
        assert stage.groups[0].patterns == (("policies.*",) if frozen else ("*",))
        assert stage.teacher == (None if stage.name == FINE_TUNE else "previous")
    assert stages[0].select == "best"
    assert (reducer.options.logprob_reduce, reducer.options.length_norm, reducer.options.replicas) == (
        "token_mean",
        "padded",
        8,
    )


def test_a_stage_is_guided_at_its_beginning_alone(monkeypatch):
    """Section 2.8: the first guide_rate of the policy stage's updates."""
    reducer, batch = undecided_tr_bert(guide_rate=0.5, replicas=2).train(), make_batch((9, 7))
    asked, scores = [], reducer.residual_scores
    monkeypatch.setattr(
        reducer, "residual_scores", lambda *arguments: asked.append(reducer.progress) or scores(*arguments)
    )
    for reducer.stage in (POLICY, JOINT, None):
        for reducer.progress in (0.0, 0.49, 0.5, 1.0):
            reducer(**batch, labels=torch.tensor([0, 1]))
    assert asked == [0.0, 0.49]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("stage", [INITIALISE, POLICY, JOINT, None])
def test_every_stage_trains_every_head(head, released, stage):
    """Also with the published deviations, with which span models train masked."""
    options = methods.lookup("tr_bert").traits.as_released if released else {}
    reducer = undecided_tr_bert(head, replicas=2, **options).train()
    batch = batch_for(reducer, (9, 7, 12))
    reducer.stage, reducer.progress = stage, 0.0
    output = reducer(**batch, **labels_for(reducer, batch))
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in reducer.policies.parameters())
    logits = output.start_logits if head == "span_qa" else output.logits
    assert len(logits) == 3 and len(output.trace.input_lengths) == (3 if stage == INITIALISE else 6)
