"""PoWER-BERT in training: the search for a configuration, the published recipe, options."""

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
from methods.masked import MaskedState
from methods.power_bert import reachability, retention_counts
from methods.recipes import assign_parameters, rate_factor
from tests.tiny import labels_for, make_batch, tiny_config, tiny_model, tiny_reducer

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
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
