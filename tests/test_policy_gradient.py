"""REINFORCE over selections: the estimator by enumeration, what replicas draw, and that it learns; [n] of the notes."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

import methods
from benchmarks.data import Feature, collate
from benchmarks.train import Compute, train_stage
from methods import ParameterGroup, Stage
from methods import tr_bert as module
from methods.policy_gradient import EPSILON, Rollout, advantages, length_price, policy_loss, replicate
from methods.tr_bert import POLICY
from tests.tiny import batch_for, make_batch, tiny_model
from tests.undecided import undecided_tr_bert

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def reducer_for(head="classification", **options):
    """TR-BERT in train() without dropout."""
    reducer = undecided_tr_bert(head, **options).train()
    reducer.model.eval()
    return reducer


def rollout_of(reducer, replicas=3, **changes):
    """A rollout, and the probabilities that it will note per step."""
    seen = []

    def probability(step, hidden, tokens):
        seen.append(reducer.probability(step, hidden, tokens))
        return seen[-1]

    settings = {"backbone": reducer.backbone, "layers": reducer.policy_layers, "replicas": replicas}
    return Rollout(probability=probability, **(settings | changes)), seen


def kept_at(state, reducer):
    """(steps, rows, seq_len) bool, tokens that went on after each step."""
    return state.trace.keep_masks[:, list(reducer.policy_layers)].transpose(0, 1)


# Estimator -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replicas", [2, 3])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_the_mean_gradient_over_all_draws_is_the_true_one(replicas, baseline):
    """[7] Three Bernoulli tokens, any reward: (K - 1) / K of the gradient; a leave-one-out baseline gives all of it."""
    logits = torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64, requires_grad=True)
    table = torch.randn(8, dtype=torch.float64)
    actions = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=torch.float64)

    def log_probability():
        chosen = torch.sigmoid(logits)
        return (actions * chosen.log() + (1 - actions) * (1 - chosen).log()).sum(dim=1)

    (true,) = torch.autograd.grad((log_probability().exp() * table).sum(), logits)
    estimate = torch.zeros(3, dtype=torch.float64)
    for drawn in itertools.product(range(8), repeat=replicas):
        rows, log_p = list(drawn), log_probability()
        loss = policy_loss(table[rows], -log_p[rows], replicas, baseline)
        estimate -= log_p[rows].sum().exp().detach() * torch.autograd.grad(loss, logits)[0]
    factor = 1.0 if baseline == "leave_one_out" else (replicas - 1) / replicas
    torch.testing.assert_close(estimate, factor * true, **TIGHT)
    assert true.abs().min() > 1e-3


def test_rewards_are_compared_among_the_replicas_of_a_text():
    """[16] Any order of the replicas gives the same loss; an interleaved layout gives another one."""
    rewards, surprise = torch.randn(4 * 3), torch.rand(4 * 3)
    loss = policy_loss(rewards, surprise, 4)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = (values.view(4, 3)[order].flatten() for values in (rewards, surprise))
    torch.testing.assert_close(policy_loss(*shuffled, 4), loss)
    interleaved = (values.view(4, 3).T.flatten() for values in (rewards, surprise))
    assert not torch.isclose(policy_loss(*interleaved, 4), loss, rtol=1e-3)
    assert advantages(rewards, 4).view(4, 3).sum(dim=0).abs().max() < 1e-6
    assert torch.equal(replicate(torch.tensor([[1], [2]]), 3).flatten(), torch.tensor([1, 2, 1, 2, 1, 2]))


@pytest.mark.parametrize("replicas", [4, 8])
def test_equal_rewards_give_no_gradient(replicas, monkeypatch):
    """[8] Exactly zero."""
    reducer = reducer_for(replicas=replicas, length_weight=0.0)
    monkeypatch.setattr(reducer, "gold_loss", lambda logits, labels: torch.full((len(labels),), 0.7))
    output = reducer(**make_batch(), labels=torch.tensor([0, 1, 2, 0, 1]))
    output.losses["policy"].backward()
    gradients = [parameter.grad for parameter in reducer.policies.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


@pytest.mark.parametrize(
    ("norm", "expected"), [("padded", (6.5 / 20, 3 / 20)), ("valid", (0.65, 0.75)), ("count", (13, 6))]
)
def test_length_price_by_hand(norm, expected):
    """[10] Twice the padding halves the published price and leaves that of valid tokens alone."""
    counts, lengths = [torch.tensor([9, 4]), torch.tensor([4, 2])], torch.tensor([10, 4])
    price = length_price(counts, lengths, 20, norm)
    torch.testing.assert_close(price, torch.tensor(expected, dtype=torch.float32))
    torch.testing.assert_close(length_price(counts, lengths, 40, norm), price / (2 if norm == "padded" else 1))


def test_a_higher_reward_is_cheaper_or_better():
    """[9] Fewer tokens at the same loss, or a lower loss at the same count; with alpha 0, length does not count."""
    reducer = reducer_for(length_weight=0.5)
    losses, lengths = torch.tensor([0.4, 0.4, 0.3]), torch.tensor([10, 10, 10])
    counts = [torch.tensor([5, 4, 5]), torch.tensor([3, 3, 3])]
    base, shorter, better = reducer.rewards(losses, counts, lengths, 10).tolist()
    assert shorter > base and better > base
    assert base == pytest.approx(-0.4 - 0.5 * 0.4)
    reducer.set_options(length_weight=0.0)
    base, shorter, _ = reducer.rewards(losses, counts, lengths, 10).tolist()
    assert shorter == base


def test_the_policy_stage_may_have_its_own_alpha():
    """Section 3: two alphas per task; a padded length that they refer to replaces the batch's."""
    reducer = reducer_for(length_weight=1.0, policy_length_weight=3.0, max_length=20)
    arguments = (torch.zeros(1), [torch.tensor([10])], torch.tensor([10]), 12)
    assert reducer.rewards(*arguments).item() == pytest.approx(-0.5)
    reducer.stage = POLICY
    assert reducer.rewards(*arguments).item() == pytest.approx(-1.5)


# Rollouts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["masked", "packed"])
@pytest.mark.parametrize("reduce", ["token_mean", "sum"])
def test_what_a_replica_drew_and_how_surprising_it_was(mode, reduce):
    """Section 2.4: actions are judged under the policy, the forced one of [CLS] too, over the tokens still live."""
    reducer, batch = reducer_for(), make_batch()
    inputs, real = reducer.check_inputs(**batch), replicate(batch["attention_mask"].bool(), 3)
    rollout, seen = rollout_of(reducer, logprob_reduce=reduce)
    state = rollout.run(inputs, mode, reducer.state_options())
    expected, live = torch.zeros(15, dtype=torch.float64), real
    for kept, probability, counts in zip(kept_at(state, reducer), seen, rollout.counts, strict=True):
        chosen = torch.zeros(15, 12, dtype=torch.float64)
        chosen[live] = probability[live] if mode == "masked" else probability
        surprise = -torch.where(kept, chosen + EPSILON, 1 - chosen + EPSILON).log() * live
        expected += surprise.sum(dim=1) / (live.sum(dim=1) if reduce == "token_mean" else 1)
        assert torch.equal(counts, kept.sum(dim=1)) and kept[:, 0].all() and not (kept & ~live).any()
        live = kept
    torch.testing.assert_close(rollout.surprise, expected, **TIGHT)
    assert len(seen) == 2 and not torch.equal(live[:5], live[5:10])  # replicas differ
    assert torch.equal(state.trace.ffn_tokens[:, 0], real.sum(dim=1))  # the shared layer is noted as run


@pytest.mark.parametrize("mode", ["masked", "packed"])
@pytest.mark.parametrize("head", ["classification", "span_qa"])
def test_thresholds_instead_of_draws_are_inference(mode, head, monkeypatch):
    """[5] Each text alone and the whole batch: logits, tokens and costs of every replica."""
    reducer = reducer_for(head, replicas=3)
    monkeypatch.setattr(Rollout, "draw", lambda self, state, step, probability: probability >= 0.5)
    for lengths in ((9,), (7,), (9, 4, 1, 7, 12)):
        inputs = reducer.check_inputs(**batch_for(reducer, lengths))
        rollout, _ = rollout_of(reducer, macs_per_token=32 * 32 + 32)
        trained = rollout.run(inputs, mode, reducer.state_options())
        with torch.no_grad():
            decided = methods.base.encode(reducer, inputs, "packed", reducer.state_options())
        logits = decided.outputs(reducer.backbone)
        torch.testing.assert_close(trained.outputs(reducer.backbone), replicate(logits, 3), **TIGHT)
        assert torch.equal(trained.trace.keep_masks, replicate(decided.trace.keep_masks, 3))
        assert (decided.trace.ffn_tokens[:, -1] < decided.trace.ffn_tokens[:, 0]).any()


def test_a_second_step_is_not_taken_when_only_first_tokens_are_left(monkeypatch):
    """[2] In training as at inference: one step's actions, one step's price."""
    reducer = reducer_for()
    monkeypatch.setattr(Rollout, "draw", lambda self, state, step, probability: torch.zeros_like(state.live))
    rollout, seen = rollout_of(reducer)
    state = rollout.run(reducer.check_inputs(**make_batch()), "packed", reducer.state_options())
    assert len(seen) == len(rollout.counts) == len(rollout.surprises) == 1
    assert (state.trace.ffn_tokens[:, 1:] == 1).all()


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_the_guided_replica_takes_the_best_as_many_as_its_policy_expects(mode):
    """[11] round(sum of pi) tokens and [CLS]; the highest scores among the live ones, never a pad; the rest draw."""
    reducer, batch = reducer_for(), make_batch()
    guide = torch.rand(2, 5, 12, dtype=torch.float64).masked_fill(batch["attention_mask"] == 0, 9.0)  # [13] pads
    rollout, seen = rollout_of(reducer, guide=guide)
    state = rollout.run(reducer.check_inputs(**batch), mode, reducer.state_options())
    live = batch["attention_mask"].bool()
    for kept, probability, scores in zip(kept_at(state, reducer), seen, guide, strict=True):
        start = 0
        for row in range(5):
            tokens = live[row].nonzero().flatten()
            chosen = probability[row, tokens] if mode == "masked" else probability[start : start + len(tokens)]
            start += len(tokens)
            wanted = int(chosen.sum().round())
            best = tokens[scores[row, tokens].argsort(descending=True)[:wanted]]
            assert set(kept[row].nonzero().flatten().tolist()) == {0, *best.tolist()}
        assert not torch.equal(kept[:5], kept[5:10])
        live = kept[:5]


@pytest.mark.parametrize("option", ["exclude", "as_released"])
def test_fillers_of_span_models_are_restored_once_or_twice(option, monkeypatch):
    """[6] and 6.1: as released, a row that selected fewer tokens than the longest writes some stopped ones twice."""
    reducer = reducer_for("span_qa", restore_filler=option)
    reducer.model.qa_outputs = nn.Identity()
    wanted = torch.tensor([[4], [1]] * 2)  # by row; one less at the second step, but for [CLS]
    monkeypatch.setattr(Rollout, "draw", lambda self, state, step, probability: state.positions < wanted - step)
    inputs = reducer.check_inputs(**make_batch((9, 7)))
    rollout, _ = rollout_of(reducer, replicas=2, double_fillers=option == "as_released")
    final = rollout.run(inputs, "masked", reducer.state_options()).outputs(reducer.backbone)
    first = reducer.teacher.teach(inputs).states[1]
    # Three columns are left. Row 1 has selected [CLS] and fills them with tokens 1 and 2, which stopped at step 1.
    twice = final[1, 1:3] - first[1, 1:3]
    assert (twice.norm(dim=-1) > 1).all() if option == "as_released" else not twice.any()
    assert torch.equal(final[1, 3:7], first[1, 3:7]) and torch.equal(final[0, 4:], first[0, 4:])


def test_stopped_states_of_span_models_teach_nothing():
    """Section 2.6: no gradient reaches them, in either mode."""
    for mode in ("masked", "packed"):
        reducer = reducer_for("span_qa")
        inputs = reducer.check_inputs(**make_batch((9, 7)))
        rollout, _ = rollout_of(reducer, replicas=2)
        state = rollout.run(inputs, mode, reducer.state_options())
        stopped = ~state.trace.keep_masks[:, -1] & replicate(inputs.attention_mask, 2)
        assert stopped.any() and not stopped.all()
        spans = state.outputs(reducer.backbone)
        (slope,) = torch.autograd.grad(
            spans[stopped].sum(), reducer.model.bert.embeddings.LayerNorm.bias, allow_unused=True
        )
        assert slope is None or not slope.any()


# Learning ------------------------------------------------------------------------------------------------------------


def marked_texts(count=512, *, without=0.0):
    """Texts of 8 to 12 tokens in which one of two markers, anywhere, decides the label; a share has none."""
    generator, rows = torch.Generator().manual_seed(0), []
    for index in range(count):
        length = 8 + index % 5
        ids = torch.randint(5, 40, (length,), generator=generator).tolist()
        place = 1 + int(torch.randint(length - 1, (1,), generator=generator))
        if torch.rand((), generator=generator) >= without:
            ids[place] = 50 + index % 2
        relevant = [i == place for i in range(length)]
        rows.append(Feature(index=index, input_ids=ids, label=index % 2, truncated=False, relevant=relevant))
    return rows


def stage(name, epochs, *groups):
    return Stage(name=name, epochs=epochs, groups=groups, batch_size=32, warmup=0.1, max_grad_norm=1.0)


@pytest.fixture(scope="module")
def fine_tuned():
    """A three-layer model that needs the marker after its first layer, whose attention is off, and guesses without."""
    torch.manual_seed(0)
    model = tiny_model("bert", num_labels=2, initializer_range=0.1).float()
    for parameter in model.bert.encoder.layer[0].attention.output.dense.parameters():
        nn.init.zeros_(parameter)
    everything = ParameterGroup(but_not=("*.layer.0.attention.output.dense.*",), learning_rate=3e-3)
    rows = marked_texts(without=0.25)
    train_stage(methods.create("dense", model), stage("dense", 8, everything), rows, 0, seed=1, compute=Compute())
    return model


def trained_policy(model, **options):
    """TR-BERT around a copy of `model` after its policy stage, and what it then keeps of 200 texts before layer 1.

    Returns:
        share of the markers, share of all tokens, MACs.
    """
    torch.manual_seed(0)
    settings = {"length_norm": "valid", "replicas": 4, "guide_rate": 0.0, "length_weight": 0.5}
    reducer = methods.create("tr_bert", copy.deepcopy(model), **(settings | options))
    policies = ParameterGroup(patterns=("policies.*",), learning_rate=5e-3)
    train_stage(reducer, stage(POLICY, 5, policies), marked_texts(), 0, seed=1, compute=Compute())
    rows = collate(marked_texts(200), 0, with_relevant=True)
    relevant, real = rows.pop("relevant"), rows["attention_mask"]
    with torch.no_grad():
        trace = reducer(**rows).trace
    kept = trace.keep_masks[:, 1]
    return float(kept[relevant].float().mean()), float(kept.sum() / real.sum()), int(reducer.macs(trace).sum())


@pytest.mark.parametrize("sign", [1, -1], ids=["right", "flipped"])
def test_the_policy_learns_to_keep_what_matters(fine_tuned, sign, monkeypatch):
    """[17] The marker stays in over 95 % of the texts, under half of the tokens do; not with the sign turned."""
    if sign < 0:
        monkeypatch.setattr(module, "policy_loss", lambda *arguments: -policy_loss(*arguments))
    markers, tokens, _ = trained_policy(fine_tuned)
    assert (markers > 0.95 and tokens < 0.5) is (sign > 0), (markers, tokens)


def test_a_higher_price_selects_fewer_tokens(fine_tuned):
    """More alpha, fewer FLOPs."""
    costs = [trained_policy(fine_tuned, length_weight=weight)[2] for weight in (0.0, 0.5, 10.0)]
    assert costs[0] > costs[1] > costs[2]
