"""PoWER-BERT: numbers of the paper and invariants of the method notes; [3] is the third of these."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers

import methods
from methods.attention import AttentionScores
from methods.encoder import encode
from methods.masked import MaskedState
from methods.power_bert import reachability, retention_counts
from methods.recipes import assign_parameters, rate_factor
from tests.tiny import labels_for, make_batch, tiny_config, tiny_model, tiny_reducer

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
RTE = (153, 125, 111, 105, 85, 80, 72, 48, 35, 27, 22, 5)
# Padded length, rate of BERT, rate of the retention parameters, lambda, batch size (section 3), training rows of GLUE.
PUBLISHED = {
    "cola": (64, 2e-5, 1.5e-3, 7e-3, 32, 8_551),
    "rte": (256, 3e-5, 3e-3, 1e-3, 16, 2_490),
    "qqp": (128, 3e-5, 1e-4, 3e-4, 64, 363_846),
    "mrpc": (128, 6e-5, 3e-3, 3e-3, 64, 3_668),
    "sst2": (64, 3e-5, 5e-4, 2e-4, 64, 67_349),
    "mnli": (128, 3e-5, 2e-4, 1e-4, 64, 392_702),
    "qnli": (128, 3e-5, 2e-4, 1.5e-4, 16, 104_743),
    "stsb": (64, 3e-5, 3e-3, 1e-3, 64, 5_749),
}
REACH = {"cola": 0.55, "rte": 0.64, "qqp": 0.78, "mrpc": 0.24, "sst2": 0.72, "mnli": 1.68, "qnli": 1.79, "stsb": 0.37}


def task_stub(name="rte", length=12):
    return SimpleNamespace(name=name, sequence_length=length)


def searching(reducer, updates=10**6):
    """The reducer at the start of its configuration search, and that stage."""
    stage = reducer.stages(task_stub())[1]
    reducer.begin_stage(stage, updates)
    return stage


def optimizer_of(stage, reducer):
    """Adam as the stage describes it, and the published rate of each group."""
    groups = [(group, members) for group, members in assign_parameters(reducer, stage.groups)]
    settings = [{"params": members, "lr": group.learning_rate} for group, members in groups]
    return torch.optim.AdamW(settings, betas=stage.adam_betas, eps=stage.adam_epsilon, weight_decay=0.0)


def update(optimizer, stage, reducer, number, total, loss):
    """One update of a stage, with its schedule and the method's projection."""
    for group in optimizer.param_groups:
        group.setdefault("full_rate", group["lr"])
        group["lr"] = group["full_rate"] * rate_factor(stage, number, total)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    reducer.after_update()


def attention_of(reducer, batch, mode):
    """What every layer's `after_attention` sees: attention scores and live tokens."""
    seen, original = [], reducer.after_attention

    def watch(state):
        seen.append((state.scores, state.live, state.real))
        return original(state)

    reducer.after_attention = watch
    with torch.no_grad(), reducer.mode(mode):
        output = reducer(**batch)
    return seen, output


# Extraction ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["masked", "packed"])
@pytest.mark.parametrize("pads", [False, True])
def test_keeping_as_many_tokens_as_there_are_gives_the_stock_model(mode, pads):
    """[1]"""
    reducer, batch = tiny_reducer("power_bert"), make_batch()
    reducer.set_options(retention_configuration=(12, 12, 12), count_pad_queries=pads)
    with torch.no_grad(), reducer.mode(mode):
        torch.testing.assert_close(reducer(**batch).logits, tiny_model("bert")(**batch).logits, **TIGHT)


@pytest.mark.parametrize("configuration", [(3, 2, 1), (1, 1, 1)])
def test_the_first_token_stays_even_with_the_lowest_score(configuration):
    """[6] Also where a layer keeps one token."""
    reducer, batch = tiny_reducer("power_bert"), make_batch((6, 4))
    reducer.set_options(retention_configuration=configuration)
    state = MaskedState(reducer.backbone, reducer.check_inputs(**batch), reducer.state_options())
    for layer, count in enumerate(configuration):
        state.begin_layer(layer)
        received = torch.arange(6.0).expand(2, 6).double()  # [CLS] is looked at least, the last token most
        state.scores = AttentionScores(received, torch.zeros(2, 6))
        kept = reducer.after_attention(state).keep & state.live
        assert kept[:, 0].all() and (kept.sum(dim=1) == count).all()
        last = torch.tensor([[5, 4, 3, 2, 1], [3, 2, 1, 5, 4]])[:, : count - 1]  # real tokens from the right
        assert kept.gather(1, last).all()
        state.apply(methods.Decision(keep=kept))


@pytest.mark.parametrize("mode", ["masked", "packed"])
@pytest.mark.parametrize("pads", [False, True])
def test_survivors_are_nested_and_keep_their_order(mode, pads):
    """[7]"""
    reducer, batch = tiny_reducer("power_bert"), make_batch()
    reducer.set_options(count_pad_queries=pads)
    with torch.no_grad():
        state = encode(reducer, reducer.check_inputs(**batch), mode, reducer.state_options())
    kept = state.trace.keep_masks
    assert not (kept[:, 1:] & ~kept[:, :-1]).any()
    expected = torch.minimum(torch.tensor([6, 4, 2]), torch.full((5, 1), 12) if pads else state.lengths.unsqueeze(1))
    assert torch.equal(kept.sum(dim=2), expected)
    if mode == "packed":  # positions of what is left, sequence after sequence, in ascending order
        assert torch.equal(state.positions, kept[:, -1].nonzero()[:, 1])


@pytest.mark.parametrize("mode", ["masked", "packed"])
@pytest.mark.parametrize("pads", [False, True])
def test_no_real_token_goes_while_a_pad_stays(mode, pads):
    """[8] Pads get no attention, so they rank last; they are never kept where they are not computed."""
    reducer, batch = tiny_reducer("power_bert"), make_batch(padded_to=20)
    reducer.set_options(count_pad_queries=pads, retention_configuration=(10, 6, 3))
    with torch.no_grad(), reducer.mode(mode):
        kept = reducer(**batch).trace.keep_masks
    real = batch["attention_mask"].bool().unsqueeze(1)
    pad_kept, real_dropped = (kept & ~real).any(dim=2), (real & ~kept).any(dim=2)
    assert not (pad_kept & real_dropped).any() and real_dropped.any()
    assert pad_kept.any() == pads


@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("diagonal", [False, True])
def test_masked_equals_packed(pads, diagonal):
    """[9] The same sets, then the same logits, for both ways to count votes."""
    reducer, batch = tiny_reducer("power_bert"), make_batch(padded_to=15)
    reducer.set_options(count_pad_queries=pads, exclude_diagonal=not diagonal)
    with torch.no_grad():
        packed = reducer(**batch)
        with reducer.mode("masked"):
            masked = reducer(**batch)
    assert torch.equal(packed.trace.keep_masks, masked.trace.keep_masks)
    torch.testing.assert_close(packed.logits, masked.logits, **TIGHT)
    assert torch.equal(reducer.macs(packed.trace), reducer.macs(masked.trace))


@pytest.mark.parametrize("mode", ["masked", "packed"])
@pytest.mark.parametrize("pads", [False, True])
def test_scores_add_up_to_the_number_of_voters(mode, pads):
    """[10] A mean over heads, so n instead of H * n; n - trace without the diagonal; pads score exactly 0."""
    reducer, batch = tiny_reducer("power_bert"), make_batch()
    reducer.set_options(count_pad_queries=pads)
    seen, output = attention_of(reducer, batch, mode)
    for layer, (scores, live, real) in enumerate(seen):
        assert scores.received[live].sum().item() == pytest.approx(float(output.trace.attention_tokens[:, layer].sum()))
        assert (scores.received[~real] == 0).all() and (scores.diagonal[~real] == 0).all()
        assert (scores.received[~live] == 0).all()
    scores, live, _ = seen[0]
    if mode == "masked":  # the diagonal against the stock model's own probabilities
        eager = tiny_model("bert", attn_implementation="eager")
        votes = eager(**batch, output_attentions=True).attentions[0].mean(dim=1) * live.unsqueeze(2)
        torch.testing.assert_close(scores.received, votes.sum(dim=1), **TIGHT)
        torch.testing.assert_close(scores.diagonal, votes.diagonal(dim1=1, dim2=2), **TIGHT)


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_order_of_the_tokens_does_not_matter(mode):
    """[11] With their position ids carried along, permuted tokens have permuted scores and the same logits."""
    reducer = tiny_reducer("power_bert")
    inputs = reducer.check_inputs(**make_batch((9, 9)))
    order = torch.cat((torch.tensor([0]), 1 + torch.randperm(8)))
    ids, positions = inputs.input_ids[:, order], inputs.position_ids[:, order]
    permuted = methods.Inputs(input_ids=ids, attention_mask=inputs.attention_mask, position_ids=positions)
    with torch.no_grad(), reducer.mode(mode):
        a, b = reducer.run(inputs), reducer.run(permuted)
    assert torch.equal(a.trace.keep_masks[..., order], b.trace.keep_masks)
    torch.testing.assert_close(a.logits, b.logits, **TIGHT)


@pytest.mark.parametrize("pads", [False, True])
def test_batch_mates_do_not_matter_at_a_fixed_length(pads):
    """[12]"""
    reducer = tiny_reducer("power_bert")
    reducer.set_options(count_pad_queries=pads)
    lengths = (9, 4, 1, 7, 12)
    with torch.no_grad():
        together = reducer(**make_batch(lengths, padded_to=16))
        for row, length in enumerate(lengths):
            alone = reducer(**make_batch((length,), padded_to=16))
            torch.testing.assert_close(alone.logits[0], together.logits[row], **TIGHT)


def test_padding_matters_only_where_it_votes():
    """[13] Pitfall 5: with voting pads, the width of the batch decides which tokens stay."""
    reducer, kept = tiny_reducer("power_bert"), {}
    for pads in (False, True):
        reducer.set_options(count_pad_queries=pads)
        with torch.no_grad():
            narrow, wide = (reducer(**make_batch((9, 7, 8), padded_to=width)) for width in (9, 30))
        kept[pads] = torch.equal(narrow.trace.keep_masks, wide.trace.keep_masks[..., :9])
        assert torch.allclose(narrow.logits, wide.logits, **TIGHT) is not pads
    assert kept == {False: True, True: False}


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_only_survivors_carry_gradient_through_the_cut(mode):
    """[17] d logits / d Y at layer j: 0 for what is dropped, not 0 for survivors; at the last layer only for [CLS]."""
    reducer, batch = tiny_reducer("power_bert"), make_batch((9,))
    cuts, original = [], reducer.after_attention

    def watch(state):
        state.hidden.retain_grad()
        cuts.append((state.hidden, state.positions.flatten()))
        return original(state)

    reducer.after_attention = watch
    with reducer.mode(mode):
        output = reducer(**batch)
    output.logits.sum().backward()
    for layer, (states, positions) in enumerate(cuts):
        moved = positions[states.grad.reshape(-1, 32).abs().sum(dim=1) > 0]
        expected = output.trace.keep_masks[0, layer].nonzero().squeeze(1) if layer < 2 else torch.tensor([0])
        assert torch.equal(moved, expected)


# Search --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_soft_extraction_starts_as_the_stock_model(mode):
    """[2] All r = 1; the penalty is then lambda * N * L (L + 1) / 2."""
    reducer, batch = tiny_reducer("power_bert"), make_batch()
    reducer.set_options(search_weight=0.01, max_length=12)
    searching(reducer)
    with torch.no_grad(), reducer.mode(mode):
        torch.testing.assert_close(reducer(**batch).logits, tiny_model("bert")(**batch).logits, **TIGHT)
    penalty = reducer.train()(**batch, **labels_for(reducer, batch)).losses["retention"]
    assert penalty.item() == pytest.approx(0.01 * 12 * 3 * 4 / 2, rel=1e-6)


def test_slope_of_the_penalty():
    """[3] Exactly lambda * j for every retention parameter of layer j."""
    reducer, batch = tiny_reducer("power_bert").train(), make_batch()
    reducer.set_options(search_weight=0.25, max_length=12)  # a power of two: no rounding
    searching(reducer)
    reducer(**batch, **labels_for(reducer, batch)).losses["retention"].backward()
    assert torch.equal(reducer.retention.grad, 0.25 * torch.tensor([1.0, 2.0, 3.0]).unsqueeze(1).expand(3, 12))


@pytest.mark.parametrize("protected", [False, True])
def test_soft_extraction_scales_by_rank(protected):
    """Section 2.3: the k-th most attended token is scaled by r[k], whichever it is; [CLS] too, unless protected."""
    reducer, batch = tiny_reducer("power_bert"), make_batch((6,))
    reducer.set_options(max_length=6, protect_cls_soft=protected)
    searching(reducer)
    reducer.retention.data = torch.rand(3, 6)
    state = MaskedState(reducer.backbone, reducer.check_inputs(**batch), reducer.state_options())
    state.begin_layer(1)
    received = torch.tensor([[0.125, 0.5, 0.875, 0.375, 0.75, 0.25]])
    state.scores = AttentionScores(received, torch.tensor([[0.0, 0.0, 0.5, 0.0, 0.0, 0.0]]))
    scale = reducer.after_attention(state).scale[0]  # without the diagonal, the third ties with the fourth
    expected = reducer.retention[1][torch.tensor([5, 1, 2, 3, 0, 4])].detach().clone()
    if protected:
        expected[0] = 1.0
    assert torch.equal(scale, expected)


def test_any_retention_gives_a_valid_configuration():
    """[5] Integers in [1, N], never rising; rounding up gives no less than rounding down."""
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        retention = torch.rand(6, 20, generator=generator) * torch.rand(6, 1, generator=generator)
        up, down = retention_counts(retention, "ceil"), retention_counts(retention, "floor")
        for counts in (up, down):
            assert all(isinstance(count, int) and 1 <= count <= 20 for count in counts)
            assert list(counts) == sorted(counts, reverse=True)
        assert all(a >= b for a, b in zip(up, down, strict=True))


def test_rounding_of_the_mass():
    """Section 2.4, by hand: masses 3.5, 3.2 and 3.9, which may not rise again, then 0."""
    retention = torch.tensor([[1.0, 1.0, 1.0, 0.5], [0.8] * 4, [1.0, 1.0, 1.0, 0.9], [0.0] * 4])
    assert retention_counts(retention, "ceil") == (4, 4, 4, 1)
    assert retention_counts(retention, "floor") == (3, 3, 3, 1)
    assert retention_counts(torch.full((1, 30), 0.1), "ceil") == (3,)  # 3.0000001 in float
    assert retention_counts(torch.ones(1, 7), "floor") == (7,)


@pytest.mark.parametrize("weight", [1e-4, 1e-2])
@pytest.mark.parametrize(("rate", "updates"), [(4e-3, 100), (3e-2, 100)])
def test_without_a_task_adam_moves_every_parameter_by_the_sum_of_rates(weight, rate, updates):
    """[15] Section 3.1: r ends at max(0, 1 - S) whatever lambda; S, the sum of the rates, is `reachability`."""
    reducer = tiny_reducer("power_bert")
    reducer.set_options(search_weight=weight, max_length=12)
    stage = reducer.stages(task_stub())[1]
    stage = stage.but(groups=(replace(stage.groups[0], learning_rate=rate),))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reducer.begin_stage(stage, updates)
    optimizer = optimizer_of(stage, reducer)
    for number in range(updates):
        loss = reducer.options.search_weight * reducer.weighted_mass(reducer.retention)
        update(optimizer, stage, reducer, number, updates, loss)
    reach = rate * sum(rate_factor(stage, number, updates) for number in range(updates))
    assert reachability(stage.groups[0], updates) == pytest.approx(reach, rel=0.03)
    torch.testing.assert_close(reducer.retention.detach(), torch.full((3, 12), max(0.0, 1 - reach)), atol=1e-2, rtol=0)


def test_schedule_of_the_public_code():
    """Section 3: lr * t / W up to t = W, then lr * (1 - t / T), t counting updates from 1."""
    stage, total, warmup = tiny_reducer("power_bert").stages(task_stub())[0], 57, 5
    expected = [t / warmup if t <= warmup else 1 - t / total for t in range(1, total + 1)]
    assert [rate_factor(stage, t - 1, total) for t in range(1, total + 1)] == pytest.approx(expected)


@pytest.mark.parametrize("task", REACH)
def test_what_the_published_settings_can_reach(task):
    """Section 3.1: S after 3 epochs."""
    *_, batch_size, rows = PUBLISHED[task]
    search = tiny_reducer("power_bert").stages(task_stub(task))[1]
    updates = 3 * math.ceil(rows / batch_size)
    assert reachability(search.groups[0], updates) == pytest.approx(REACH[task], abs=0.006)


def test_a_search_that_cannot_get_far_warns():
    """Section 3.1: S < 1 is said, with the smallest count that can be reached."""
    reducer = tiny_reducer("power_bert")
    with pytest.warns(UserWarning, match=r"174 updates can lower .* by 0.24 at most.* 76% of 128 tokens"):
        reducer.begin_stage(reducer.stages(task_stub("mrpc"))[1], 174)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reducer.begin_stage(reducer.stages(task_stub("mrpc"))[1], 1740)


def toy_search(weight, total=60):
    """A whole search on a toy task: does the text hold token 7?"""
    torch.manual_seed(0)
    config = tiny_config("bert", max_position_embeddings=12)
    model = transformers.BertForSequenceClassification(config)
    reducer = methods.create("power_bert", model, search_weight=weight, max_length=10).train()
    stage = reducer.stages(task_stub(length=10))[1]
    soft, rest = stage.groups
    stage = stage.but(groups=(replace(soft, learning_rate=0.04), rest))
    reducer.begin_stage(stage, total)
    optimizer = optimizer_of(stage, reducer)
    for number in range(total):
        ids = torch.randint(8, 60, (8, 10))
        labels = torch.arange(8) % 2
        ids[labels == 1, 5] = 7
        output = reducer(input_ids=ids, labels=labels)
        update(optimizer, stage, reducer, number, total, output.loss)
        assert reducer.retention.min() >= 0 and reducer.retention.max() <= 1
    during = set(reducer.state_dict())
    reducer.end_stage(stage)
    return reducer, during


def test_the_search_finds_a_configuration():
    """[4, 5, 16, 18] A larger weight keeps no more; r is gone afterwards and the parameters are BERT's."""
    counts = {}
    for weight in (1e-6, 1e-3, 1.0):
        reducer, during = toy_search(weight)
        counts[weight] = reducer.options.retention_configuration
        stock = {f"model.{name}" for name in reducer.model.state_dict()}
        assert during == stock | {"retention"} and set(reducer.state_dict()) == stock
        assert reducer.retention is None and reducer.stage is None
        assert reducer.config.options["retention_configuration"] == counts[weight]
        with torch.no_grad():
            trace = reducer.eval()(input_ids=torch.randint(8, 60, (3, 10))).trace
        assert trace.ffn_tokens.tolist() == [list(counts[weight])] * 3
    totals = [sum(kept) for kept in counts.values()]
    assert totals == sorted(totals, reverse=True) and totals[-1] < totals[0]
    assert counts[1.0] == (1, 1, 1)


def test_attention_dropout_is_off_unless_asked():
    """Section 3: none on attention probabilities in training, whatever the backbone's own."""
    model = tiny_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
    reducer = methods.create("power_bert", model).train()
    batch = make_batch()
    assert torch.equal(reducer(**batch).logits, reducer(**batch).logits)
    reducer.set_options(attention_dropout=0.5)
    assert not torch.equal(reducer(**batch).logits, reducer(**batch).logits)


# Recipe and options --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", PUBLISHED)
def test_published_recipe(task):
    """Section 3: three stages of the same length; rates, lambda and batch size per task."""
    length, rate, soft_rate, weight, batch_size, _ = PUBLISHED[task]
    reducer = tiny_reducer("power_bert")
    assert reducer.task_options(task_stub(task, length)) == {"search_weight": weight, "max_length": length}
    fine_tune, search, retrain = stages = reducer.stages(task_stub(task, length))
    assert [stage.name for stage in stages] == ["fine_tune", "configuration_search", "retrain"]
    assert [stage.start for stage in stages] == ["pretrained", "previous", "previous"]
    assert [stage.select for stage in stages] == ["best", "last", "best"]
    assert [group.learning_rate for group in search.groups] == [soft_rate, rate]
    assert [stage.groups[0].learning_rate for stage in (fine_tune, retrain)] == [rate, rate]
    assert not search.groups[0].clipped
    for stage in stages:
        assert (stage.batch_size, stage.warmup, stage.decay) == (batch_size, 0.1, "linear_unshifted")
        assert (stage.adam_betas, stage.adam_epsilon, stage.max_grad_norm) == ((0.9, 0.999), 1e-7, None)
        assert stage.epochs == fine_tune.epochs and all(group.weight_decay == 0 for group in stage.groups)


def test_the_search_puts_only_the_retention_in_its_own_group():
    """Pitfall 12."""
    reducer = tiny_reducer("power_bert")
    stage = searching(reducer)
    (_, soft), (_, rest) = assign_parameters(reducer, stage.groups)
    assert len(soft) == 1 and soft[0] is reducer.retention
    assert len(rest) == len(list(reducer.model.parameters()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retention_configuration": (4, 5, 3)}, r"non-increasing counts of at least 1, got \(4, 5, 3\)"),
        ({"retention_configuration": (4, 2, 0)}, "at least 1, got"),
        ({"retention_configuration": (4, 2)}, "retention_configuration has 2 counts for 3 layers"),
        ({"rounding": "round"}, "rounding must be 'ceil' or 'floor', got 'round'"),
        ({"search_weight": -1.0}, "search_weight must be >= 0, got -1.0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        methods.create("power_bert", tiny_model("bert"), **options)


# Cost ----------------------------------------------------------------------------------------------------------------


def padded_cost(configuration, length, real=10):
    """MACs of the layers of BERT-base when a text is padded to `length`."""
    with torch.device("meta"):
        model = transformers.BertForSequenceClassification(transformers.BertConfig())
        reducer = methods.create("power_bert", model, retention_configuration=configuration)
    trace = methods.Trace(torch.ones(1, real, dtype=torch.bool), 12)
    return int(reducer.macs(trace, "sequence", length)) - (768 * 768 + 2 * 768)


@pytest.mark.parametrize(
    ("configuration", "length", "macs"),
    [
        (None, 64, 5_511_315_456),
        (None, 128, 11_173_625_856),
        (None, 256, 22_951_231_488),
        (None, 384, 35_332_816_896),
        (None, 512, 48_318_382_080),
        (RTE, 256, 6_968_443_392),
    ],
)
def test_integers_of_section_5(configuration, length, macs):
    """[14] Attention of layer j on l_(j-1) tokens, feed-forward on l_j."""
    assert padded_cost(configuration, length) == macs


@pytest.mark.parametrize(
    ("configuration", "length", "ratio"),
    [(RTE, 256, 3.29), ((80, 73, 70, 50, 50, 40, 33, 27, 20, 15, 13, 3), 128, 3.01), ((1,) * 12, 128, 27.3)],
)
def test_speed_ups_of_section_5(configuration, length, ratio):
    """[14] The last is a ceiling: the first attention always sees every token."""
    assert padded_cost(None, length) / padded_cost(configuration, length) == pytest.approx(ratio, rel=2e-3)


@pytest.mark.parametrize("mode", ["masked", "packed"])
@pytest.mark.parametrize("family", ["bert", "electra"])
def test_padded_cost_is_what_computing_pads_executes(mode, family):
    """Section 5: a padded text costs what a pass that really computes its pads traces; their embeddings are charged."""
    reducer, batch = tiny_reducer("power_bert", family), make_batch(padded_to=15)
    reducer.set_options(count_pad_queries=True)
    with torch.no_grad(), reducer.mode(mode):
        trace = reducer(**batch).trace
    pads = 15 - batch["attention_mask"].sum(dim=1)
    expected = reducer.macs(trace) + reducer.backbone.embedding_macs() * pads
    assert torch.equal(reducer.macs(trace, "sequence", 15), expected)
