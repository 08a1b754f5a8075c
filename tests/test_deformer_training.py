"""DeFormer's losses, teacher and stages; [7] is the seventh invariant of the method notes."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import methods
from benchmarks import checkpoints
from benchmarks.experiments import supports
from benchmarks.tasks import get_task
from methods.deformer import DECOMPOSED, JOINT
from methods.distillation import softened_divergence
from methods.encoder import encode
from methods.recipes import assign_parameters
from tests.pair_batches import PAIRS, pair_batch
from tests.tiny import FAMILIES, HEADS, labels_for, tiny_model

MNLI, QQP = (SimpleNamespace(name=name, skim_weight=0.2, sequence_length=128) for name in ("mnli", "qqp"))
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def undropped(head="classification", family="bert", **options):
    """A reducer in train() whose result does not vary."""
    return methods.create("deformer", tiny_model(family, head, **NO_DROPOUT), **options).double().train()


def passed(reducer, batch):
    """The state after a pass, with what the losses read."""
    inputs = reducer.check_inputs(**batch)
    return encode(reducer, inputs, "masked", reducer.state_options()), inputs


def stages(task=QQP, recipe="paper"):
    return methods.lookup("deformer").recipe_stages(task, recipe)


# Gradients -----------------------------------------------------------------------------------------------------------


def test_lower_layers_learn_from_both_texts():
    """[7] Their gradient is the sum of what each text's own pass through a copy of them gives, and neither is 0."""
    reducer, batch = undropped(split=2, kd_weight=0.0, lrs_weight=0.0), pair_batch(PAIRS[:1])
    reducer(**batch, labels=torch.tensor([1])).loss.backward()
    model = tiny_model("bert", **NO_DROPOUT)
    lower = [copy.deepcopy(model.bert.encoder.layer[:2]) for _ in range(2)]
    ids, sides = batch["input_ids"], []
    for kind, (start, stop) in enumerate(((0, 4), (4, 9))):
        part = ids[:, start:stop]
        hidden = model.bert.embeddings(part, torch.full_like(part, kind), torch.arange(stop - start).unsqueeze(0))
        for layer in lower[kind]:
            hidden = layer(hidden)
        sides.append(hidden)
    hidden = model.bert.encoder.layer[2](torch.cat(sides, dim=1))
    logits = model.classifier(model.bert.pooler(hidden))
    (0.7 * F.cross_entropy(logits.float(), torch.tensor([1]))).backward()  # losses are float32
    for index in (0, 1):
        found = reducer.model.bert.encoder.layer[index].attention.self.value.weight.grad
        first, second = (side[index].attention.self.value.weight.grad for side in lower)
        assert first.abs().max() > 1e-4 and second.abs().max() > 1e-4
        torch.testing.assert_close(found, first + second, rtol=1e-6, atol=1e-9)


def test_the_teacher_stays_as_it_is():
    """[14] No gradient, and the same weights after an update of the student."""
    reducer, batch = undropped(), pair_batch()
    reducer.set_teacher(tiny_model("bert", seed=3))
    before = {name: weight.clone() for name, weight in reducer.teacher.model.state_dict().items()}
    optimizer = torch.optim.AdamW(reducer.parameters(), lr=1e-2)
    reducer(**batch, **labels_for(reducer, batch)).loss.backward()
    optimizer.step()
    assert all(p.grad is None and not p.requires_grad for p in reducer.teacher.model.parameters())
    assert all(torch.equal(before[name], weight) for name, weight in reducer.teacher.model.state_dict().items())
    assert not any(name.startswith("_teacher") for name, _ in reducer.named_parameters())


# Losses --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("over", ["real", "padded"])
def test_a_student_that_is_its_teacher_loses_nothing(head, over):
    """[8] At split 0; at split 2 it does."""
    batch = pair_batch(slots=(7, 9))
    for split, nothing in ((0, True), (2, False)):
        reducer = undropped(head, split=split, lrs_over=over)
        losses = reducer(**batch, **labels_for(reducer, batch)).losses
        for name in ("distillation", "similarity"):
            assert (losses[name].item() == pytest.approx(0.0, abs=1e-12)) is nothing


@pytest.mark.parametrize("head", ["classification", "span_qa"])
@pytest.mark.parametrize("split", [0, 1, 2, 3])
def test_similarity_compares_the_upper_layers_and_the_pooled_vector(split, head):
    """[9] L - k terms, one more with a pooler; by hand, from the outputs of layers k .. L - 1 alone."""
    batch, real = pair_batch(), pair_batch()["attention_mask"].bool()
    for layers in ("mean", "sum"):
        reducer = undropped(head, split=split, lrs_layers=layers)
        reducer.set_teacher(tiny_model("bert", head, seed=3))
        state, inputs = passed(reducer, batch)
        lesson = reducer.teacher.teach(inputs)
        assert len(state.notes["upper"]) == 3 - split
        terms = [
            (own - taught)[real].square().mean()
            for own, taught in zip(state.notes["upper"], lesson.states[split + 1 :], strict=True)
        ]
        if head == "classification":
            own, taught = reducer.model.bert.pooler(state.hidden), reducer.teacher.model.bert.pooler(lesson.states[-1])
            terms.append((own - taught).square().mean())
        expected = sum(terms, torch.zeros(())) / (max(1, len(terms)) if layers == "mean" else 1)
        torch.testing.assert_close(reducer.similarity(state, lesson), expected.float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pooled_vector_is_what_the_head_s_last_layer_reads(family):
    """But for dropout, which would make a student that is its teacher differ from it."""
    reducer, states = undropped(family=family), torch.randn(4, 32, dtype=torch.float64)
    torch.testing.assert_close(reducer.backbone.pooled(states), reducer.eval().backbone.pool(states))


def test_similarity_of_padding_counts_where_it_is_asked_for():
    values = {}
    for over in ("real", "padded"):
        reducer = undropped(lrs_over=over)
        reducer.set_teacher(tiny_model("bert", seed=3))
        found = []
        for width in (0, 30):
            state, inputs = passed(reducer, pair_batch(padded_to=width))
            found.append(reducer.similarity(state, reducer.teacher.teach(inputs)).item())
        values[over] = found
    assert values["real"][0] == pytest.approx(values["real"][1], rel=1e-6)
    assert values["padded"][0] != pytest.approx(values["padded"][1], rel=1e-3)


def test_distillation_by_hand():
    """tau^2 * KL of softened predictions; for spans the mean of start and end, and padding has no part."""
    student, teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    taught, own = torch.tensor([0.0, 0.5]).softmax(0), torch.tensor([0.5, 0.0]).softmax(0)
    expected = 4 * (taught * (taught / own).log()).sum() / 2  # the second text's predictions agree
    torch.testing.assert_close(softened_divergence(student, teacher, 2.0, "classification"), expected)
    lowest = torch.finfo(torch.float32).min
    spans = [torch.stack((logits, logits.flip(1)), dim=2) for logits in (student, teacher)]
    padded = [F.pad(logits, (0, 0, 0, 3), value=lowest).requires_grad_() for logits in spans]
    for temperature in (0.1, 1.0, 2.0):
        plain = softened_divergence(*spans, temperature, "span_qa")
        found = softened_divergence(*padded, temperature, "span_qa")
        torch.testing.assert_close(found, plain)
        torch.testing.assert_close(plain, softened_divergence(student, teacher, temperature, "classification"))
        found.backward()
        assert padded[0].grad.isfinite().all()
    values = torch.tensor([[1.0], [4.0]])
    assert float(softened_divergence(values, values + 2, 5.0, "regression")) == 4.0


def test_labels_that_may_hold_together_are_distilled_one_by_one():
    """All true beside all false: softmax over the labels would see no difference."""
    model = tiny_model("bert", problem_type="multi_label_classification")
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.fill_(6.0)
    reducer = methods.create("deformer", model, lrs_weight=0.0, task_weight=0.0, kd_weight=1.0).train()
    teacher = copy.deepcopy(model)
    teacher.classifier.bias.data.fill_(-6.0)
    reducer.set_teacher(teacher)
    batch = pair_batch()
    labels = torch.zeros(len(batch["input_ids"]), 3)
    found = reducer(**batch, labels=labels).losses["distillation"]
    taught, own = torch.tensor([-3.0, 0.0]).softmax(0), torch.tensor([3.0, 0.0]).softmax(0)  # at a temperature of 2
    torch.testing.assert_close(found.float(), 4 * (taught * (taught / own).log()).sum())


def test_weights_of_the_three_terms():
    """Each option scales its own term; without distillation and similarity no teacher is made."""
    batch = pair_batch()
    losses = []
    for weights in ((1.0, 1.0, 1.0), (2.0, 0.5, 0.25)):
        options = dict(zip(("kd_weight", "lrs_weight", "task_weight"), weights, strict=True))
        reducer = undropped(**options)
        reducer.set_teacher(tiny_model("bert", seed=3))
        losses.append(reducer(**batch, **labels_for(reducer, batch)).losses)
    for name, factor in (("distillation", 2.0), ("similarity", 0.5), ("task", 0.25)):
        assert losses[1][name].item() == pytest.approx(factor * losses[0][name].item(), rel=1e-5)
    plain = undropped(kd_weight=0.0, lrs_weight=0.0)
    assert set(plain(**batch, **labels_for(plain, batch)).losses) == {"task"}
    assert plain._teacher is None


# Stages --------------------------------------------------------------------------------------------------------------


def test_the_joint_teacher_trains_undivided_in_the_same_layout():
    """Its stage knows no split and the task's loss alone; afterwards the texts stay apart again."""
    reducer, batch = undropped(), pair_batch()
    joint, _ = stages()
    reducer.begin_stage(joint, 5)
    output = reducer(**batch, **labels_for(reducer, batch))
    lengths = batch["attention_mask"].sum(dim=1)
    assert reducer.split == 0 and set(output.losses) == {"task"}
    assert torch.equal(output.trace.attention_pairs, lengths.unsqueeze(1).expand(-1, 3) ** 2)
    assert reducer.check_inputs(**batch).position_ids[0].tolist()[:9] == [0, 1, 2, 3, 0, 1, 2, 3, 4]
    reducer.end_stage(joint)
    assert reducer.split == 2


@pytest.mark.parametrize("student", ["teacher", "upper", "initial"])
@pytest.mark.parametrize("family", ["bert", "albert"])
def test_what_the_student_starts_from(student, family):
    """The teacher's weights, those in layers k and above and the head, or none of them."""
    options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    reducer = methods.create("deformer", tiny_model(family, **options), student=student).double()
    joint, decomposed = stages()
    initial = {name: weight.clone() for name, weight in reducer.model.state_dict().items()}
    reducer.begin_stage(joint, 1)
    with torch.no_grad():
        for parameter in reducer.model.parameters():
            parameter += 1  # what the joint teacher learnt
    reducer.end_stage(joint)
    reducer.begin_stage(decomposed, 1)
    lower = ("embedding", "encoder.layer.0.", "encoder.layer.1.")  # ALBERT's one layer is an upper one too
    for name, parameter in reducer.model.named_parameters():
        taught = student == "teacher" or (student == "upper" and not any(part in name for part in lower))
        torch.testing.assert_close(parameter, initial[name] + int(taught))


@pytest.mark.parametrize("student", ["teacher", "upper", "initial"])
def test_a_run_killed_after_the_joint_stage_goes_on_with_the_same_student(student, tmp_path):
    """The checkpoint of the stage's end has what the student starts from; later ones, and saved models, have not."""
    model = tiny_model("bert", **NO_DROPOUT)

    def fresh():
        return methods.create("deformer", copy.deepcopy(model), student=student)

    reducer, (joint, decomposed) = fresh(), stages()
    names = set(reducer.state_dict())
    reducer.begin_stage(joint, 5)
    with torch.no_grad():
        for parameter in reducer.model.parameters():
            parameter.add_(1.0)
    checkpoints.write_snapshot(tmp_path / "epoch", checkpoints.of_reducer(reducer))
    again = fresh()
    again.begin_stage(joint, 5)  # killed within the stage: it is begun again, and goes on from its checkpoint
    checkpoints.into_reducer(checkpoints.read_snapshot(tmp_path / "epoch"), again)
    for one in (reducer, again):
        one.end_stage(joint)
    checkpoints.write_snapshot(tmp_path / "stage", checkpoints.of_reducer(again))
    resumed = fresh()
    checkpoints.into_reducer(checkpoints.read_snapshot(tmp_path / "stage"), resumed)
    for one in (reducer, again, resumed):
        one.begin_stage(decomposed, 5)
        assert set(one.state_dict()) == names
    for weight, *others in zip(*(one.model.parameters() for one in (reducer, again, resumed)), strict=True):
        assert all(torch.equal(weight, other) for other in others)
    checkpoints.into_reducer(checkpoints.of_reducer(reducer), resumed)  # and from a later checkpoint, which lacks them


def test_the_published_recipe():
    """Section 3: twice three epochs in batches of 32 at 5e-5, 15 % warm-up, decay but on norms and biases."""
    joint, decomposed = stages()
    assert (joint.name, joint.start, joint.teacher) == (JOINT, "pretrained", None)
    assert (decomposed.name, decomposed.start, decomposed.teacher) == (DECOMPOSED, "previous", "previous")
    for stage in (joint, decomposed):
        assert (stage.epochs, stage.batch_size, stage.warmup, stage.decay) == (3, 32, 0.15, "linear")
        assert (stage.max_grad_norm, stage.adam_epsilon) == (1.0, 1e-6)
    for family in ("bert", "distilbert", "albert"):
        model = methods.create("deformer", tiny_model(family)).model
        (none, plain), (some, decayed) = assign_parameters(model, joint.groups)
        assert (none.weight_decay, some.weight_decay) == (
            0.0,
            0.01,
        ) and none.learning_rate == some.learning_rate == 5e-5
        assert all(parameter.dim() == 1 for parameter in plain) and all(p.dim() == 2 for p in decayed)


def test_what_is_known_beforehand_per_task():
    """A premise, else the second text; three quarters of the layers apart. Single texts are no task for it."""
    cls = methods.lookup("deformer")
    assert cls.task_options(MNLI) == {"cached_side": "first"} and cls.task_options(QQP) == {}
    for layers, split in ((12, 9), (6, 4), (3, 2)):
        assert methods.create("deformer", tiny_model("bert", num_hidden_layers=layers)).split == split
    assert "two texts of a pair" in supports("deformer", get_task("sst2"))
    assert supports("deformer", get_task("mrpc")) is None and supports("deformer", get_task("squad_v2")) is None


def test_a_few_updates_bring_the_student_to_its_teacher():
    """Distillation and similarity fall; the teacher of the second stage is the joint model as it was left."""
    reducer, batch = undropped(task_weight=0.0), pair_batch()
    joint, decomposed = stages()
    reducer.begin_stage(joint, 1)
    reducer.end_stage(joint)
    reducer.set_teacher(reducer.model)
    reducer.begin_stage(decomposed, 20)
    optimizer = torch.optim.AdamW(reducer.parameters(), lr=3e-3)
    history = []
    for _ in range(20):
        optimizer.zero_grad()
        output = reducer(**batch, **labels_for(reducer, batch))
        history.append({name: term.item() for name, term in output.losses.items()})
        output.loss.backward()
        optimizer.step()
    for name in ("distillation", "similarity"):
        assert history[-1][name] < 0.5 * history[0][name]
