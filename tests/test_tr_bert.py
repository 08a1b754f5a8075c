"""TR-BERT: decisions, costs, scores, losses and recipe; [n] is the n-th invariant of the method notes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers
from torch.nn import functional as F

import methods
from benchmarks.data import Feature
from benchmarks.train import Compute, train_stage
from methods import Decision, ParameterGroup
from methods.packing import masked_rank
from methods.recipes import FINE_TUNE
from methods.teacher import Teacher
from methods.tr_bert import INITIALISE, JOINT, POLICY, SelectionPolicy
from tests.tiny import HEADS, batch_for, labels_for, logits_of, make_batch, tiny_model
from tests.told import agree, final_states, run

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
LAYER = 4 * 32 * 32 + 2 * 32 * 48  # MACs per token of a tiny layer, attention's products apart
POLICY_MACS = 32 * 32 + 32


def reducer_for(head="classification", family="bert", **options):
    """TR-BERT on a tiny model of four layers (steps before layers 1 and 2), policies that differ between tokens."""
    torch.manual_seed(1)
    depth = {"n_layers": 4} if family == "distilbert" else {"num_hidden_layers": 4}
    reducer = methods.create("tr_bert", tiny_model(family, head, **depth), **options).double().eval()
    for policy in reducer.policies:
        for linear in (policy[0], policy[-1]):
            torch.nn.init.normal_(linear.weight, std=0.7)
    return reducer


def biased(reducer, *biases):
    """Let each policy say the same of every token."""
    for policy, bias in zip(reducer.policies, biases, strict=True):
        torch.nn.init.zeros_(policy[-1].weight)
        policy[-1].bias.data.fill_(bias)
    return reducer


def base_model_macs(lengths):
    """MACs of TR-BERT on BERT-base with `lengths` tokens per layer, and of BERT-base on the first of them."""
    with torch.device("meta"):
        reducer = methods.create("tr_bert", transformers.BertForSequenceClassification(transformers.BertConfig()))
    trace = methods.Trace(torch.ones(1, lengths[0], dtype=torch.bool), 12)
    row = torch.tensor([0])
    for layer, count in enumerate(lengths):
        n = torch.tensor([count])
        trace.record_attention(layer, row, n, n * n)
        trace.record_ffn(layer, row, n, torch.arange(count))
    for layer in reducer.policy_layers:
        if lengths[layer - 1] > 1:
            trace.overhead_macs += lengths[layer - 1] * reducer.policies[0].macs_per_token
    return int(reducer.macs(trace)), int(reducer.backbone.dense_macs(torch.tensor([lengths[0]])))


# Decisions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["masked", "packed"])
@pytest.mark.parametrize("head", HEADS)
def test_sure_policies_give_the_stock_model(mode, head):
    """[1] Logits, and the states of all real tokens."""
    reducer, batch = biased(reducer_for(head), 20.0, 20.0), make_batch()
    with torch.no_grad():
        stock = tiny_model("bert", head, num_hidden_layers=4)(**batch, output_hidden_states=True)
    output, mask = run(reducer, batch, mode), batch["attention_mask"]
    assert torch.equal(output.trace.ffn_tokens, mask.sum(dim=1, keepdim=True).expand(-1, 4))
    if head != "span_qa":
        torch.testing.assert_close(output.logits, stock.logits, **TIGHT)
        return
    torch.testing.assert_close(output.start_logits * mask, stock.start_logits * mask, **TIGHT)
    expected = stock.hidden_states[-1] * mask.unsqueeze(-1)
    torch.testing.assert_close(final_states(reducer, batch, mode), expected, **TIGHT)


def test_unwilling_policies_leave_the_first_token_alone():
    """[2] One column after the first step; the second is not asked and not charged."""
    reducer = biased(reducer_for(), -20.0, -20.0)
    trace = agree(reducer, make_batch((9, 4, 1))).trace
    assert trace.ffn_tokens.tolist() == [[9, 1, 1, 1], [4, 1, 1, 1], [1, 1, 1, 1]]
    assert trace.overhead_macs.tolist() == [9 * POLICY_MACS, 4 * POLICY_MACS, 0]
    head = 32 * 32 + 3 * 32
    expected = [LAYER * (n + 3) + 2 * 32 * (n * n + 3) + n * POLICY_MACS * (n > 1) + head for n in (9, 4, 1)]
    assert reducer.macs(trace).tolist() == expected


@pytest.mark.parametrize("seed", range(4))
def test_the_first_token_stays_and_padding_never_enters(seed):
    """[3] Whatever the weights: [CLS] survives as the first of its text, in decisions as in draws."""
    reducer, batch = reducer_for(), make_batch()
    for policy in reducer.policies:
        torch.nn.init.normal_(policy[-1].bias, std=3.0, generator=torch.Generator().manual_seed(seed))
    order = []
    decide = reducer.before_layer
    reducer.before_layer = lambda state: (
        order.append((state.sequences, state.counts(), state.positions)) or decide(state)
    )
    run(reducer, batch, "packed")
    for sequences, counts, positions in order:
        assert len(sequences) == 5
        for row in positions.split(counts.tolist()):
            assert row[0] == 0 and (row.diff() > 0).all()  # and the others keep their order
    reducer.train()
    for mode in ("masked", "packed"):
        with reducer.mode(mode):
            kept = reducer(**batch, labels=torch.tensor([0, 1, 2, 0, 1])).trace.keep_masks
        assert kept[..., 0].all() and not (kept & ~batch["attention_mask"].bool().repeat(8, 1).unsqueeze(1)).any()


@pytest.mark.parametrize("head", HEADS)
def test_a_text_in_a_batch_is_a_text_alone(head):
    """[4], [10] Batch mates and padding change neither logits nor tokens."""
    reducer = reducer_for(head)
    batch = make_batch(padded_to=24)
    together = agree(reducer, batch)
    assert (together.trace.ffn_tokens[:, 3] < together.trace.input_lengths).any()
    for row, length in enumerate((9, 4, 1, 7, 12)):
        alone = make_batch((length,))
        single = run(reducer, alone, "packed")
        joint = logits_of(together, batch["attention_mask"])[row]
        joint = joint[:length] if head == "span_qa" else joint
        torch.testing.assert_close(logits_of(single, alone["attention_mask"])[0], joint, **TIGHT)
        assert torch.equal(single.trace.keep_masks[0], together.trace.keep_masks[row, :, :length])


def test_as_released_every_text_keeps_as_many_tokens():
    """6.2: the likeliest k of each text, k being what the text that wants most wants; alone, nothing changes."""
    reducer, batch = reducer_for(), make_batch()
    own = run(reducer, batch, "packed").trace.ffn_tokens
    reducer.set_options(batched_eval="equal_k")
    equal = agree(reducer, batch).trace.ffn_tokens
    longest = own[:, 1].max()
    assert torch.equal(equal[:, 1], own[:, 0].clamp(max=longest)) and not torch.equal(equal, own)
    for row, length in enumerate((9, 4, 1, 7, 12)):
        assert torch.equal(run(reducer, make_batch((length,)), "packed").trace.ffn_tokens[0], own[row])


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_a_stopped_token_keeps_the_state_of_its_step(mode):
    """[6] Bit for bit h^(1) or h^(L/2); every real token is written exactly once."""
    reducer, batch = reducer_for("span_qa"), make_batch()
    read = []
    reducer.policies[0].register_forward_pre_hook(lambda module, arguments: read.append(arguments[0]))
    reducer.policies[1].register_forward_pre_hook(lambda module, arguments: read.append(arguments[0]))
    output = run(reducer, batch, mode)
    final, real = final_states(reducer, batch, mode), batch["attention_mask"].bool()
    for step, layer in enumerate((1, 2)):
        kept = output.trace.keep_masks[:, layer]
        before = output.trace.keep_masks[:, layer - 1]
        asked = before & (before.sum(dim=1, keepdim=True) > 1)
        stopped = asked & ~kept
        assert stopped.any() and torch.equal(final[stopped], read[step][stopped[asked]])
    torch.testing.assert_close(
        final[real].norm(dim=-1), torch.full((int(real.sum()),), 32**0.5).double(), rtol=1e-6, atol=0
    )


def test_a_lower_threshold_selects_more():
    """The knob after training: FLOPs fall as the threshold rises."""
    reducer, batch, costs = reducer_for(), make_batch(), []
    for threshold in (0.0, 0.3, 0.5, 0.7, 1.0):
        reducer.set_options(threshold=threshold)
        costs.append(int(reducer.macs(run(reducer, batch, "packed").trace).sum()))
    assert costs == sorted(costs, reverse=True) and len(set(costs)) >= 4


def test_steps_follow_the_depth_of_the_model():
    """Section 2.2: layers 1 and L // 2; one step where they are the same; none in a single layer."""
    for depth, layers in ((2, (1,)), (3, (1,)), (6, (1, 3)), (12, (1, 6))):
        reducer = methods.create("tr_bert", tiny_model("bert", num_hidden_layers=depth))
        assert reducer.policy_layers == layers and len(reducer.policies) == len(layers)
    with pytest.raises(ValueError, match="the model has no other"):
        methods.create("tr_bert", tiny_model("bert", num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"policy_layers \(1, 3\) reach beyond the last of 3 layers"):
        methods.create("tr_bert", tiny_model("bert"), policy_layers=(1, 3))


# Cost ----------------------------------------------------------------------------------------------------------------


def test_cost_of_bert_base():
    """[14] One layer by length; everything kept costs 0.05 % more than BERT, [CLS] alone leaves a ceiling below 12."""
    for n, layer in ((1, 7_079_424), (128, 931_135_488), (512, 4_026_531_840)):
        assert base_model_macs([n] * 12)[1] == 12 * layer + 768 * 768 + 2 * 768
    assert SelectionPolicy(768).macs_per_token == 32 * 768 + 32
    assert sum(p.numel() for p in SelectionPolicy(768).parameters()) == 24_641
    for n, ceiling in ((152, 11.2), (551, 11.8)):
        ours, dense = base_model_macs([n] * 12)
        assert 0.9994 < dense / ours < 0.9995
        ours, dense = base_model_macs([n] + [1] * 11)
        assert round(dense / ours, 1) == ceiling


# Heuristic scores ----------------------------------------------------------------------------------------------------


def test_scores_are_first_order_changes_of_the_loss():
    """Section 2.9, computed by hand from the stock model: |g . (h^(3) - h^(step))| at three quarters of the depth."""
    reducer, batch, labels = reducer_for(), make_batch((9, 9)), torch.tensor([0, 2])
    model = tiny_model("bert", num_hidden_layers=4)
    states = model(**batch, output_hidden_states=True).hidden_states
    states[3].retain_grad()
    F.cross_entropy(model.classifier(model.bert.pooler(states[4])), labels, reduction="sum").backward()
    scores = reducer.residual_scores(reducer.check_inputs(**batch), labels)
    for step, layer in enumerate((1, 2)):
        expected = (states[3].grad * (states[3] - states[layer])).sum(dim=-1).abs()
        torch.testing.assert_close(scores[step], expected.detach(), rtol=1e-5, atol=1e-9)  # the loss is in float32
    assert reducer.residual_scores(reducer.check_inputs(**batch), labels).requires_grad is False


def test_a_token_that_nothing_happens_to_has_no_score(monkeypatch):
    """[13] Where the layers from the first step to the gradient's depth are the identity on a token."""
    reducer, inputs = reducer_for(), make_batch((9, 9))
    watch = Teacher.before_layer

    def leaping(self, state):
        return watch(self, state) or (Decision(leap=state.positions == 3) if state.layer in (1, 2) else None)

    monkeypatch.setattr(Teacher, "before_layer", leaping)
    scores = reducer.residual_scores(reducer.check_inputs(**inputs), torch.tensor([0, 2]))
    assert not scores[:, :, 3].any() and (scores[:, :, [1, 2, 4]] > 0).all()


def test_initialisation_teaches_the_ranks_of_the_scores():
    """Section 2.10: distance to 1 - r / n of the real tokens; the loss falls and the order becomes the teacher's."""
    reducer, batch = reducer_for(), make_batch((9, 12))
    labels, real = torch.tensor([0, 2]), batch["attention_mask"].bool()
    reducer.train()
    reducer.model.eval()
    reducer.stage = INITIALISE
    output = reducer(**batch, labels=labels)
    assert set(output.losses) == {"initialisation"} and (output.trace.keep_ratios() == 1).all()
    inputs = reducer.check_inputs(**batch)
    states, scores = reducer.teacher.teach(inputs).states, reducer.residual_scores(inputs, labels)
    expected = 0.0
    for step, layer in enumerate((1, 2)):
        target = 1 - masked_rank(scores[step], real) / real.sum(dim=1, keepdim=True)
        distance = (reducer.probability(step, states[layer], real) - target).abs() * real
        expected += (distance.sum(dim=1) / real.sum(dim=1)).mean().item()
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in reducer.policies.parameters())


# Losses --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_distillation_from_itself_has_no_gradient(head):
    """[15] Student = teacher: the loss is the teacher's entropy (regression: 0), its slope in the logits 0."""
    reducer, batch = reducer_for(head), make_batch((9, 7))
    taught = reducer.teacher.teach(reducer.check_inputs(**batch)).logits
    logits = taught.clone().requires_grad_()
    loss = reducer.soft_loss(logits, taught)
    entropy = torch.zeros(2)
    if head != "regression":
        distribution = torch.distributions.Categorical(logits=taught.float().transpose(1, -1))
        entropy = distribution.entropy().view(2, -1).sum(dim=1)
    torch.testing.assert_close(loss, entropy, rtol=1e-5, atol=1e-6)
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    assert slope.abs().max() < 1e-6


def test_several_labels_at_once_are_distilled_one_by_one():
    reducer = reducer_for()
    taught = torch.randn(3, 3, requires_grad=True)
    loss = reducer.soft_loss(taught, taught.detach(), multi_label=True)
    (slope,) = torch.autograd.grad(loss.sum(), taught)
    assert loss.shape == (3,) and slope.abs().max() < 1e-6


def test_span_losses_are_mixed_as_published():
    """Section 2.11: the mean of start and end against labels, their sum against a teacher; or one rule for both."""
    reducer = reducer_for("span_qa")
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
    reducer, batch = reducer_for(kd_reward=reward, replicas=2), make_batch((9, 7))
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
    reducer = reducer_for()
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
    reducer, batch = reducer_for(guide_rate=0.5, replicas=2).train(), make_batch((9, 7))
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
    reducer = reducer_for(head, replicas=2, **options).train()
    batch = batch_for(reducer, (9, 7, 12))
    reducer.stage, reducer.progress = stage, 0.0
    output = reducer(**batch, **labels_for(reducer, batch))
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in reducer.policies.parameters())
    logits = output.start_logits if head == "span_qa" else output.logits
    assert len(logits) == 3 and len(output.trace.input_lengths) == (3 if stage == INITIALISE else 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length_norm": "pads"}, "length_norm must be one of padded, valid, count, got 'pads'"),
        ({"logprob_reduce": "mean"}, "logprob_reduce must be one of token_mean, sum, got 'mean'"),
        ({"baseline": "critic"}, "baseline must be one of mean, leave_one_out, got 'critic'"),
        ({"kd_reward": "hard"}, "kd_reward must be one of soft, gold, got 'hard'"),
        ({"span_loss": "max"}, "span_loss must be one of mixed, mean, sum, got 'max'"),
        ({"batched_eval": "equal"}, "batched_eval must be one of masked, equal_k, got 'equal'"),
        ({"restore_filler": "no"}, "restore_filler must be one of exclude, as_released, got 'no'"),
        ({"replicas": 1}, "replicas must be 2 or more, got 1"),
        ({"length_weight": -0.1}, "length_weight and policy_length_weight must be >= 0"),
        ({"policy_length_weight": -1.0}, "length_weight and policy_length_weight must be >= 0"),
        ({"guide_rate": 1.5}, "guide_rate must be from 0 to 1, got 1.5"),
        ({"threshold": -0.1}, "threshold must be from 0 to 1, got -0.1"),
        ({"policy_layers": (0, 2)}, r"policy_layers must be ascending layers from 1 on, got \(0, 2\)"),
        ({"policy_layers": (2, 1)}, r"policy_layers must be ascending layers from 1 on, got \(2, 1\)"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        methods.create("tr_bert", tiny_model("bert"), **options)
