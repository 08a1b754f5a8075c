"""LTP: the invariants of the paper and of its public code, by number in the method notes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import methods
from benchmarks.tasks import get_task
from benchmarks.train import Compute, train_stage
from methods.encoder import encode
from methods.ltp import HARD, SOFT, Ltp, LtpOptions, starting_thresholds
from methods.state import StateOptions
from tests.test_training import features
from tests.tiny import LENGTHS, batch_for, labels_for, make_batch, tiny_model
from tests.told import TIGHT, agree, run


def build(family="bert", head="classification", **options):
    torch.manual_seed(1)
    settings = {"final_threshold": 0.08, "reference_length": 12} | options
    return methods.create("ltp", tiny_model(family, head), **settings).double().eval()


def softly(reducer, batch, **state_options):
    """State and logits of a soft training pass without dropout."""
    reducer.train()
    for module in reducer.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    inputs = reducer.check_inputs(**batch)
    options = StateOptions(training=True, attention_dropout=0.0, **state_options)
    state = encode(reducer, inputs, "masked", options)
    return state, state.outputs(reducer.backbone), inputs


def watched_scores(reducer, batch, mode="masked"):
    """Per layer: scores (*tokens), live tokens, and the state's own sums per text."""
    seen = []
    decide = type(reducer).after_attention

    def watch(state):
        scores = reducer.scores(state).detach()
        seen.append((scores, state.live.clone(), state.real.clone(), state.sum(scores), state.counts()))
        return decide(reducer, state)

    reducer.after_attention = watch
    run(reducer, batch, mode)
    del reducer.after_attention
    return seen


def test_invariant_1_thresholds_of_zero_keep_every_token():
    reducer, batch = build(final_threshold=0.0), make_batch(padded_to=20)
    output = run(reducer, batch, "packed")
    assert torch.equal(output.trace.ffn_tokens, batch["attention_mask"].sum(dim=1, keepdim=True).expand(-1, 3))
    with torch.no_grad():
        torch.testing.assert_close(output.logits, tiny_model("bert")(**batch).logits, **TIGHT)


@pytest.mark.parametrize("head", ["classification", "regression", "span_qa"])
def test_invariant_2_masked_equals_gathered_for_mixed_lengths(head):
    agree(build(head=head), make_batch())


def test_invariant_3_live_sets_are_nested():
    trace = run(build(), make_batch(), "packed").trace
    assert torch.equal(trace.attention_tokens[:, 1:], trace.ffn_tokens[:, :-1])
    assert (trace.ffn_tokens <= trace.attention_tokens).all()
    assert not (trace.keep_masks[:, 1:] & ~trace.keep_masks[:, :-1]).any()


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_invariant_4_mean_live_score_is_the_inverse_reference_length(mode):
    for scores, live, _, sums, counts in watched_scores(build(), make_batch(), mode):
        torch.testing.assert_close(sums, counts.double() / 12, **TIGHT)
        assert (scores[~live] == 0).all()


def test_invariant_5_a_pinned_divisor_ignores_batch_mates_and_padding_and_a_tensors_length_does_not():
    reducer = build()
    together = run(reducer, make_batch(), "packed").trace.keep_masks
    wide = run(reducer, make_batch(padded_to=30), "packed").trace.keep_masks
    assert torch.equal(wide[..., :12], together) and not wide[..., 12:].any()
    by_width = {}
    for width in (12, 30):  # what a divisor of the padded tensor's own length would do
        reducer.options = build(reference_length=width).options
        by_width[width] = run(reducer, make_batch(padded_to=width), "packed").trace.ffn_tokens
    assert not torch.equal(by_width[12], by_width[30])


def test_invariant_6_starting_thresholds():
    code = starting_thresholds(methods.lookup("ltp").options_class(schedule="code"), 12)
    paper = starting_thresholds(methods.lookup("ltp").options_class(), 12)
    torch.testing.assert_close(code, torch.arange(12) * 0.01 / 12)
    torch.testing.assert_close(paper, torch.arange(1, 13) * 0.01 / 12)
    assert float(code[0]) == 0 and float(paper[-1]) == pytest.approx(0.01)
    assert float(code[-1]) == pytest.approx(0.009167, abs=1e-6)


def test_squad_is_divided_by_its_own_length_and_starts_from_the_same_multiple_of_the_mean():
    glue, squad = ({**vars(LtpOptions()), **Ltp.task_options(get_task(name))} for name in ("sst2", "squad_v2"))
    assert (glue["reference_length"], squad["reference_length"]) == (128, 384)
    assert glue["final_threshold"] * 128 == pytest.approx(squad["final_threshold"] * 384)
    assert Ltp.task_options(get_task("sst2")) == {}  # published records have nothing else


@pytest.mark.parametrize(("schedule", "first_prunes"), [("code", False), ("paper", True)])
def test_invariant_7_the_first_layer_prunes_as_documented_only(schedule, first_prunes):
    reducer, batch = build(schedule=schedule), make_batch((9, 7))
    state, logits, inputs = softly(reducer, batch)
    assert len(state.notes["soft_masks"]) == 2 + first_prunes
    inputs.labels = torch.tensor([0, 1])
    reducer.output(logits, reducer.losses(state, logits, inputs), state.trace).loss.backward()
    assert bool(reducer.thresholds.grad[0] != 0) == first_prunes
    reducer.eval()
    with torch.no_grad():
        reducer.thresholds[0] = 1.0
    kept = run(reducer, batch, "packed").trace.ffn_tokens[:, 0].tolist()
    assert kept == ([1, 1] if first_prunes else [9, 7])


def test_invariant_8_the_regulariser_raises_thresholds():
    """dR / dtheta_l = -(1/T) mean(m (1 - m)) with scores held fixed, against finite differences too."""
    reducer, batch = build(temperature=0.02), make_batch((9, 7))
    state, _, inputs = softly(reducer, batch)
    masks, mask = torch.stack(state.notes["soft_masks"]).detach(), inputs.attention_mask
    scores = masks.logit() * 0.02 + reducer.thresholds.detach()[:, None, None]
    thresholds = reducer.thresholds.detach().clone().requires_grad_()

    def regulariser(values):
        state.notes["soft_masks"] = list(torch.sigmoid((scores - values[:, None, None]) / 0.02))
        return reducer.regulariser(state, inputs)

    (gradient,) = torch.autograd.grad(regulariser(thresholds), thresholds)
    expected = -((masks * (1 - masks) * mask).sum(dim=(1, 2)) / mask.sum()) / 0.02
    torch.testing.assert_close(gradient, expected, **TIGHT)
    step = torch.tensor([0.0, 1e-5, 0.0], dtype=torch.float64)
    slope = (regulariser(thresholds.detach() + step) - regulariser(thresholds.detach() - step)) / 2e-5
    assert float(slope) == pytest.approx(float(gradient[1]), rel=1e-3)
    assert (gradient < 0).all() and regulariser(thresholds - 0.01 * gradient) < regulariser(thresholds)


def test_invariant_9_a_cold_soft_mask_is_the_hard_one():
    reducer, batch = build(temperature=1e-7), make_batch()
    state, _, inputs = softly(reducer, batch)
    soft = state.notes["soft_masks"][0]  # later layers see scaled, not removed, tokens
    scores = watched_scores(reducer.eval(), batch)[0][0]
    clear = inputs.attention_mask & ((scores - reducer.thresholds.detach()[0]).abs() > 1e-6)
    assert torch.equal((soft > 0.5)[clear], (scores >= reducer.thresholds[0])[clear]) and clear.sum() > 20
    reducer = build(final_threshold=-1.0)
    _, logits, _ = softly(reducer, batch)
    torch.testing.assert_close(logits, tiny_model("bert")(**batch).logits, **TIGHT)


def test_invariant_10_the_task_loss_alone_moves_thresholds():
    reducer, batch = build(temperature=0.05), make_batch((9, 7))
    _, logits, _ = softly(reducer, batch)
    reducer.task_loss(logits, torch.tensor([0, 1])).mean().backward()
    assert (reducer.thresholds.grad != 0).all()  # the last one through the scaling of the first token


def test_invariant_11_the_hard_stage_leaves_thresholds_alone():
    reducer = build().float()
    before = reducer.thresholds.detach().clone()
    stage = next(s for s in reducer.recipe_stages(get_task("mrpc"), "short") if s.name == HARD)
    weights = reducer.model.classifier.weight.detach().clone()
    train_stage(reducer, stage.but(batch_size=8), features(), 0, seed=1, compute=Compute())
    assert torch.equal(before, reducer.thresholds) and reducer.thresholds.grad is None
    assert not torch.equal(weights, reducer.model.classifier.weight)
    reducer.train()
    reducer.stage = HARD
    batch = make_batch((9, 8))
    assert set(reducer(**batch, **labels_for(reducer, batch)).losses) == {"task"}


def test_invariants_12_and_13_a_higher_threshold_never_keeps_more_and_a_huge_one_keeps_the_first_token():
    kept = []
    for value in (0.0, 0.04, 0.08, 0.12, 9.0):
        reducer = build(final_threshold=0.0)
        with torch.no_grad():
            reducer.thresholds[1] = value
        kept.append(run(reducer, make_batch(), "packed").trace)
    layers = [trace.keep_masks[:, 1] for trace in kept]
    assert all(not (after & ~before).any() for before, after in pairwise(layers))
    assert layers[0].sum() > layers[2].sum() > layers[4].sum()
    assert kept[4].ffn_tokens[:, 1].tolist() == [1] * 5 and kept[4].attention_pairs[:, 2].tolist() == [1] * 5


def test_invariant_14_hand_computed_cost():
    """Counts of the method notes: 1,914,341,376 MACs against 3,426,877,440 at 40 tokens, 0.5586."""
    after = torch.tensor([40, 36, 32, 28, 24, 20, 18, 16, 14, 12, 10, 8])
    before = torch.cat((torch.tensor([40]), after[:-1]))
    d = 768
    macs = int((4 * d * d * before + 2 * d * before**2 + 8 * d * d * after).sum())
    with torch.device("meta"):
        base = tiny_model("bert", hidden_size=d, num_hidden_layers=12, intermediate_size=4 * d)
    model = methods.create("ltp", base)
    trace = methods.Trace(torch.ones(1, 40, dtype=torch.bool), 12)
    for layer in range(12):
        row = torch.tensor([0])
        trace.record_attention(layer, row, before[layer : layer + 1], before[layer : layer + 1] ** 2)
        trace.record_ffn(layer, row, after[layer : layer + 1], torch.arange(int(after[layer])))
    head = int(model.backbone.head_macs(torch.tensor([40])))
    assert int(model.macs(trace)) - head == macs == 1_914_341_376
    dense = int(model.backbone.dense_macs(torch.tensor([40]))) - head
    assert dense == 3_426_877_440 and round(macs / dense, 4) == 0.5586


def test_invariant_15_pruning_in_the_last_layer_changes_cost_alone():
    batch, outputs = make_batch(), []
    for value in (0.0, 9.0):
        reducer = build(final_threshold=0.0)
        with torch.no_grad():
            reducer.thresholds[2] = value
        outputs.append((reducer, run(reducer, batch, "packed")))
    (reducer, kept), (_, pruned) = outputs
    torch.testing.assert_close(kept.logits, pruned.logits, **TIGHT)
    assert (reducer.macs(pruned.trace) < reducer.macs(kept.trace))[batch["attention_mask"].sum(dim=1) > 1].all()


def test_invariant_16_noise_in_training_only():
    reducer, batch = build(noisy_scores=True), make_batch()
    assert torch.equal(run(reducer, batch, "packed").logits, run(reducer, batch, "packed").logits)
    masks = []
    for _ in range(2):
        state = encode(reducer.train(), reducer.check_inputs(**batch), "masked", reducer.state_options())
        masks.append(state.notes["soft_masks"][0])
    assert not torch.equal(*masks)


def test_invariant_17_padding_changes_the_published_regulariser_alone():
    values = {}
    for over in ("real", "padded"):
        for width in (12, 24):
            state, _, inputs = softly(build(regularise_over=over), make_batch(padded_to=width))
            values[over, width] = float(build(regularise_over=over).regulariser(state, inputs).detach())
    assert values["real", 12] == pytest.approx(values["real", 24], rel=1e-9)
    assert values["padded", 12] != pytest.approx(values["padded", 24], rel=1e-3)


def test_invariant_18_a_batch_of_two_is_like_any_other():
    reducer = build(schedule="code")
    both = run(reducer, make_batch((9, 7)), "packed").logits
    alone = [run(reducer, make_batch((length,)), "packed").logits[0] for length in (9, 7)]
    torch.testing.assert_close(both, torch.stack(alone), **TIGHT)


def test_more_threshold_fewer_flops():
    """The knob theta: MACs never rise with it."""
    macs = [
        int(reducer.macs(run(reducer, make_batch(), "packed").trace).sum())
        for reducer in (build(final_threshold=value) for value in (0.0, 0.02, 0.05, 0.08, 0.12))
    ]
    assert macs == sorted(macs, reverse=True) and len(set(macs)) > 3


def test_more_pruning_weight_fewer_flops():
    """The knob lambda: after the soft stage a larger weight has raised the thresholds further."""
    macs = []
    for weight in (0.0, 0.5, 5.0):
        reducer = build(pruning_weight=weight, temperature=0.02, final_threshold=0.06).float()
        stage = next(s for s in reducer.recipe_stages(get_task("mrpc"), "short") if s.name == SOFT)
        groups = tuple(methods.ParameterGroup(patterns=(p,), learning_rate=5e-3) for p in ("thresholds", "*"))
        stage = stage.but(groups=groups, batch_size=8, epochs=3, warmup=0.0)
        train_stage(reducer, stage, features(), 0, seed=1, compute=Compute())
        trace = run(reducer, batch_for(reducer, LENGTHS), "packed").trace
        macs.append(int(reducer.macs(trace).sum()))
    assert macs[0] > macs[1] > macs[2]


def test_released_masking_gives_the_same_classification_at_the_dense_cost():
    """Dead tokens are hidden as keys and never read, so removing them changes no logit: only the saving is missing."""
    honest, released = build(), build(mask_only=True)
    batch = make_batch()
    packed, masked = run(honest, batch, "packed"), run(released, batch, "masked")
    assert released.run_mode == "masked"
    torch.testing.assert_close(packed.logits, masked.logits, **TIGHT)
    assert torch.equal(released.macs(masked.trace), released.backbone.dense_macs(batch["attention_mask"].sum(dim=1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"pruning_weight": -1.0}, "pruning_weight must be >= 0, got -1.0"),
        ({"reference_length": 0}, "reference_length must be at least 1, got 0"),
        ({"schedule": "linear"}, "schedule must be 'paper' or 'code', got 'linear'"),
        ({"score_divisor": "padded"}, "score_divisor must be 'reference' or 'live', got 'padded'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
