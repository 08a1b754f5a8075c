"""TR-BERT: decisions, costs and scores; [n] is the n-th invariant of the method notes."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch.nn import functional as F

import methods
from methods import Decision
from methods.families import TOKEN_HEADS
from methods.packing import masked_rank
from methods.teacher import Teacher
from methods.tr_bert import INITIALISE, SelectionPolicy
from tests.tiny import HEADS, logits_of, make_batch, tiny_model
from tests.told import agree, final_states, run
from tests.undecided import undecided_tr_bert

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
LAYER = 4 * 32 * 32 + 2 * 32 * 48  # MACs per token of a tiny layer, attention's products apart
POLICY_MACS = 32 * 32 + 32


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
    reducer, batch = biased(undecided_tr_bert(head), 20.0, 20.0), make_batch()
    with torch.no_grad():
        stock = tiny_model("bert", head, num_hidden_layers=4)(**batch, output_hidden_states=True)
    output, mask = run(reducer, batch, mode), batch["attention_mask"]
    assert torch.equal(output.trace.ffn_tokens, mask.sum(dim=1, keepdim=True).expand(-1, 4))
    if head == "token_classification":
        torch.testing.assert_close(output.logits[mask == 1], stock.logits[mask == 1], **TIGHT)
        return
    if head != "span_qa":
        torch.testing.assert_close(output.logits, stock.logits, **TIGHT)
        return
    torch.testing.assert_close(output.start_logits * mask, stock.start_logits * mask, **TIGHT)
    expected = stock.hidden_states[-1] * mask.unsqueeze(-1)
    torch.testing.assert_close(final_states(reducer, batch, mode), expected, **TIGHT)


def test_unwilling_policies_leave_the_first_token_alone():
    """[2] One column after the first step; the second is not asked and not charged."""
    reducer = biased(undecided_tr_bert(), -20.0, -20.0)
    trace = agree(reducer, make_batch((9, 4, 1))).trace
    assert trace.ffn_tokens.tolist() == [[9, 1, 1, 1], [4, 1, 1, 1], [1, 1, 1, 1]]
    assert trace.overhead_macs.tolist() == [9 * POLICY_MACS, 4 * POLICY_MACS, 0]
    head = 32 * 32 + 3 * 32
    expected = [LAYER * (n + 3) + 2 * 32 * (n * n + 3) + n * POLICY_MACS * (n > 1) + head for n in (9, 4, 1)]
    assert reducer.macs(trace).tolist() == expected


@pytest.mark.parametrize("seed", range(4))
def test_the_first_token_stays_and_padding_never_enters(seed):
    """[3] Whatever the weights: [CLS] survives as the first of its text, in decisions as in draws."""
    reducer, batch = undecided_tr_bert(), make_batch()
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
    reducer = undecided_tr_bert(head)
    batch = make_batch(padded_to=24)
    together = agree(reducer, batch)
    assert (together.trace.ffn_tokens[:, 3] < together.trace.input_lengths).any()
    for row, length in enumerate((9, 4, 1, 7, 12)):
        alone = make_batch((length,))
        single = run(reducer, alone, "packed")
        joint = logits_of(together, batch["attention_mask"])[row]
        joint = joint[:length] if head in TOKEN_HEADS else joint
        torch.testing.assert_close(logits_of(single, alone["attention_mask"])[0], joint, **TIGHT)
        assert torch.equal(single.trace.keep_masks[0], together.trace.keep_masks[row, :, :length])


def test_as_released_every_text_keeps_as_many_tokens():
    """6.2: the likeliest k of each text, k being what the text that wants most wants; alone, nothing changes."""
    reducer, batch = undecided_tr_bert(), make_batch()
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
    reducer, batch = undecided_tr_bert("span_qa"), make_batch()
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
    reducer, batch, costs = undecided_tr_bert(), make_batch(), []
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
    reducer, batch, labels = undecided_tr_bert(), make_batch((9, 9)), torch.tensor([0, 2])
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
    reducer, inputs = undecided_tr_bert(), make_batch((9, 9))
    watch = Teacher.before_layer

    def leaping(self, state):
        return watch(self, state) or (Decision(leap=state.positions == 3) if state.layer in (1, 2) else None)

    monkeypatch.setattr(Teacher, "before_layer", leaping)
    scores = reducer.residual_scores(reducer.check_inputs(**inputs), torch.tensor([0, 2]))
    assert not scores[:, :, 3].any() and (scores[:, :, [1, 2, 4]] > 0).all()


def test_initialisation_teaches_the_ranks_of_the_scores():
    """Section 2.10: distance to 1 - r / n of the real tokens; the loss falls and the order becomes the teacher's."""
    reducer, batch = undecided_tr_bert(), make_batch((9, 12))
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


# Options -------------------------------------------------------------------------------------------------------------


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
        ({"length_weight": -0.1}, "length_weight must be from 0 to inf, got -0.1"),
        ({"policy_length_weight": -1.0}, "policy_length_weight must be from 0 to inf, got -1.0"),
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
