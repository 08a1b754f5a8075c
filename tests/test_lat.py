"""LAT: how it drops, restores and counts; invariants of the method notes, [3] is the third."""

from __future__ import annotations

import pytest
import torch
import transformers

import methods
from methods.encoder import encode
from methods.lat_search import LEAST, length_drop
from tests.tiny import FAMILIES, HEADS, LENGTHS, batch_for, logits_of, make_batch, tiny_model, tiny_reducer
from tests.told import TIGHT, agree, final_states, run

MODES = ("masked", "packed")
both = pytest.mark.parametrize("mode", MODES)
VARIANTS = {
    "shares": {},
    "absolute": {"counts": "absolute"},
    "pads vote": {"counts": "absolute", "count_pad_queries": True},
}
variants = pytest.mark.parametrize("variant", VARIANTS)


def lat(configuration=(8, 5, 3), head="classification", family="bert", **options):
    """On the tiny model, at lengths of 12."""
    model = tiny_model(family, head)
    return methods.create("lat", model, **({"length_configuration": configuration, "max_length": 12} | options))


def stock_logits(batch, head):
    with torch.no_grad():
        return logits_of(tiny_model("bert", head)(**batch), batch["attention_mask"])


# Dropping ------------------------------------------------------------------------------------------------------------


@both
@variants
@pytest.mark.parametrize("head", HEADS)
def test_full_length_gives_the_stock_model(mode, variant, head):
    """[1]"""
    reducer, batch = lat((12, 12, 12), head, **VARIANTS[variant]), make_batch()
    output = run(reducer, batch, mode)
    torch.testing.assert_close(logits_of(output, batch["attention_mask"]), stock_logits(batch, head), **TIGHT)


@both
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("configuration", [(12, 2, 2), (6, 6, 2), (2, 2, 2)])
def test_spans_have_logits_everywhere(mode, family, configuration):
    """[2] (batch, seq_len), real and not stock."""
    reducer = lat(configuration, "span_qa", family)
    batch = batch_for(reducer, padded_to=15)
    output = run(reducer, batch, mode)
    assert output.start_logits.shape == output.end_logits.shape == (len(LENGTHS), 15)
    real = batch["attention_mask"].bool()
    assert (output.start_logits[real].abs() < 1e3).all() and output.start_logits[real].unique().numel() > 20


@both
def test_the_first_token_is_kept_and_restored(mode):
    """[3] In every kept set, and its row of the output is its state after the last layer."""
    reducer, batch = lat(head="span_qa"), make_batch()
    with torch.no_grad():
        state = encode(reducer, reducer.check_inputs(**batch), mode, reducer.state_options())
        last = state.first_tokens()
    assert state.trace.keep_masks[..., 0].all()
    assert torch.equal(final_states(reducer, batch, mode)[:, 0], last)


@both
@variants
def test_a_dropped_token_keeps_the_state_it_entered_the_layer_with(mode, variant):
    """[4] Bit for bit; the embeddings' output for the first layer."""
    reducer, batch = lat(head="span_qa", **VARIANTS[variant]), make_batch()
    real = batch["attention_mask"].bool()
    kept = run(reducer, batch, mode).trace.keep_masks & real.unsqueeze(1)
    entered = []

    def watch(state):
        full = torch.zeros(*batch["input_ids"].shape, 32, dtype=torch.float64)
        if mode == "packed":
            full[state.expand(state.sequences), state.positions] = state.hidden
        else:
            full = state.hidden
        entered.append(full)

    reducer.before_layer = watch
    final = final_states(reducer, batch, mode)
    alive, dropped = real, 0
    for layer in range(3):
        gone = alive & ~kept[:, layer]
        assert torch.equal(final[gone], entered[layer][gone])
        alive, dropped = kept[:, layer], dropped + int(gone.sum())
    assert dropped > 10 and not torch.equal(final[alive], entered[2][alive])


@both
@variants
@pytest.mark.parametrize("head", HEADS)
def test_last_writers_partition_the_positions(mode, variant, head):
    """[5, 6] With full texts: the embeddings write N - l_1 of them, layer i l_i - l_(i+1), the last one l_L; nested."""
    reducer, batch = lat(head=head, **VARIANTS[variant]), make_batch((12, 12))
    kept = run(reducer, batch, mode).trace.keep_masks
    assert not (kept[:, 1:] & ~kept[:, :-1]).any()
    writers = torch.stack([kept.sum(dim=1).eq(layer).sum(dim=1) for layer in range(4)], dim=1)
    assert writers.tolist() == [[12 - 8, 8 - 5, 5 - 3, 3]] * 2


@variants
@pytest.mark.parametrize("protected", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_masked_equals_packed(variant, protected, family):
    """[7] Also where [CLS] may go."""
    reducer = lat(head="span_qa", family=family, protect_cls=protected, **VARIANTS[variant])
    batch = batch_for(reducer, padded_to=14)
    if family == "modernbert" and reducer.options.count_pad_queries:
        with pytest.raises(ValueError, match="padding cannot be computed like tokens where attention is local"):
            run(reducer, batch, "masked")
        return
    agree(reducer, batch)


def test_the_published_rule_for_spans_lets_the_first_token_go():
    """Section 2.1: plain top l_i; a [CLS] that few look at is dropped early. Its logits are then stale, not missing."""
    batch = make_batch((12, 11, 10, 12))
    kept = {
        protected: run(lat((4, 3, 2), "span_qa", protect_cls=protected), batch, "packed").trace.keep_masks
        for protected in (True, False)
    }
    assert kept[True][..., 0].all() and not kept[False][..., 0].all()
    assert torch.equal(kept[True].sum(dim=-1), kept[False].sum(dim=-1))


@pytest.mark.parametrize("head", ["classification", "regression"])
def test_heads_that_read_the_first_token_protect_it(head):
    """Pitfall 6"""
    with pytest.raises(ValueError, match=f"protect_cls=False is for heads over tokens; a {head} head reads"):
        lat(head=head, protect_cls=False)


@both
@variants
def test_pads_are_dropped_first(mode, variant):
    """[8] They score exactly 0; none is kept while a real token goes."""
    reducer, batch = lat((10, 6, 3), **VARIANTS[variant]), make_batch(padded_to=16)
    seen, original = [], reducer.after_attention

    def watch(state):
        seen.append(state.scores.received[~state.real])
        return original(state)

    reducer.after_attention = watch
    kept, real = run(reducer, batch, mode).trace.keep_masks, batch["attention_mask"].bool().unsqueeze(1)
    assert not ((kept & ~real).any(dim=2) & (real & ~kept).any(dim=2)).any()
    assert (torch.cat(seen) == 0).all() and (kept & ~real).any() == (variant == "pads vote")


@variants
def test_batch_mates_do_not_matter_at_a_fixed_length(variant):
    """[8]"""
    reducer = lat(**VARIANTS[variant])
    together = run(reducer, make_batch(padded_to=16), "packed")
    for row, length in enumerate(LENGTHS):
        alone = run(reducer, make_batch((length,), padded_to=16), "packed")
        torch.testing.assert_close(alone.logits[0], together.logits[row], **TIGHT)


def test_the_diagonal_counts():
    """Section 2.1 and pitfall 5: ranked by all attention received, one's own too; here that decides."""
    reducer, batch = lat((8, 5, 3)), make_batch((12, 12, 11))
    power = methods.create("power_bert", tiny_model("bert"), retention_configuration=(8, 5, 3))
    power.set_options(exclude_diagonal=False)
    plain = run(power, batch, "packed").trace.keep_masks
    power.set_options(exclude_diagonal=True)
    without = run(power, batch, "packed").trace.keep_masks
    reducer.set_options(counts="absolute")
    ours = run(reducer, batch, "packed").trace.keep_masks
    assert torch.equal(ours, plain) and not torch.equal(ours, without)


# Counts --------------------------------------------------------------------------------------------------------------


@both
def test_what_counts_mean_for_shorter_texts(mode):
    """(9, 6, 2) of 12: shares keep ceil(n * l / 12), at least two; absolute counts min(n, l)."""
    reducer, batch = lat((9, 6, 2)), make_batch((12, 8, 5, 2, 1))
    kept = run(reducer, batch, mode).trace.ffn_tokens
    assert kept.tolist() == [[9, 6, 2], [6, 4, 2], [4, 3, 2], [2, 2, 2], [1, 1, 1]]
    reducer.set_options(counts="absolute")
    kept = run(reducer, batch, mode).trace.ffn_tokens
    assert kept.tolist() == [[9, 6, 2], [8, 6, 2], [5, 5, 2], [2, 2, 2], [1, 1, 1]]


@pytest.mark.parametrize("counts", ["shares", "absolute"])
def test_texts_longer_than_the_lengths_assume(counts):
    """20 tokens at N = 12: shares scale up, absolute counts cut down, from the first layer on."""
    reducer, batch = lat((12, 6, 6), counts=counts), make_batch((20,))
    wanted = [20, 10, 10] if counts == "shares" else [12, 6, 6]
    assert agree(reducer, batch).trace.ffn_tokens.tolist() == [wanted]


def test_scores_are_asked_for_where_tokens_are_dropped():
    """Elsewhere attention runs without them."""
    reducer = lat((12, 7, 7))
    assert [reducer.needs_scores(layer) for layer in range(3)] == [True, True, False]
    reducer.set_options(length_configuration=None)
    assert not any(reducer.needs_scores(layer) for layer in range(3))


@both
def test_a_configuration_can_be_chosen_at_any_time(mode):
    """[20] By options, from a record's list too; the next call without one is the stock model's, bit for bit."""
    reducer, batch = lat(None), make_batch()
    before = run(reducer, batch, mode).logits
    reducer.set_options(length_configuration=[8, 5, 3])
    assert run(reducer, batch, mode).trace.ffn_tokens[-1].tolist() == [8, 5, 3]
    assert reducer.config.options["length_configuration"] == (8, 5, 3)
    reducer.set_options(length_configuration=None)
    assert torch.equal(run(reducer, batch, mode).logits, before)


def test_smaller_configurations_cost_less():
    """The knob is monotone: the larger the ratio dropped per layer, the fewer MACs, whatever counts mean."""
    for variant in VARIANTS.values():
        reducer, batch, costs = lat(None, **variant), make_batch((12, 12, 9)), []
        for ratio in (0.0, 0.1, 0.2, 0.35, 0.5):
            reducer.set_options(length_configuration=length_drop(reducer.space, ratio))
            costs.append(int(reducer.macs(run(reducer, batch, "packed").trace).sum()))
        assert costs == sorted(set(costs), reverse=True)


# Cost ----------------------------------------------------------------------------------------------------------------


def base_model(length, head="SequenceClassification", **options):
    with torch.device("meta"):
        model = getattr(transformers, f"BertFor{head}")(transformers.BertConfig())
        return methods.create("lat", model, max_length=length, **options)


@pytest.mark.parametrize(
    ("length", "full", "smallest"),
    [(384, 35_332_816_896, 11_776_298_496), (128, 11_173_625_856, 3_886_806_528)],
)
def test_integers_of_section_5(length, full, smallest):
    """[18] BERT-base, without the head; the search counts the same as a padded text is charged."""
    reducer = base_model(length, counts="absolute")
    head = 768 * 768 + 2 * 768
    trace = methods.Trace(torch.ones(1, 10, dtype=torch.bool), 12)
    for configuration, macs in ((reducer.space.full, full), (reducer.space.smallest, smallest)):
        assert reducer.configuration_macs(configuration) - head == macs
        reducer.set_options(length_configuration=configuration)
        assert int(reducer.macs(trace, "sequence", length)) - head == macs


@pytest.mark.parametrize("head", ["SequenceClassification", "QuestionAnswering"])
@pytest.mark.parametrize("length", [128, 384])
def test_full_length_costs_what_the_dense_model_does(head, length):
    """[18] Exactly; a span head reads all N restored tokens."""
    reducer = base_model(length, head, counts="absolute")
    assert reducer.configuration_macs(reducer.space.full) == int(reducer.backbone.dense_macs(torch.tensor([length])))


@pytest.mark.parametrize(
    ("layers", "length", "share"),
    [(12, 64, 0.364), (12, 128, 0.348), (12, 256, 0.335), (12, 384, 0.333), (12, 512, 0.328), (6, 128, 0.541)],
)
def test_reach_of_the_search(layers, length, share):
    """Section 4.3: relative MACs of the smallest configuration, to the three printed digits."""
    with torch.device("meta"):
        config = transformers.BertConfig(num_hidden_layers=layers)
        reducer = methods.create("lat", transformers.BertForSequenceClassification(config), max_length=length)
    macs = [reducer.configuration_macs(c) for c in (reducer.space.smallest, reducer.space.full)]
    assert macs[0] / macs[1] == pytest.approx(share, abs=6e-4)


@both
@pytest.mark.parametrize("family", ["bert", "electra"])
@pytest.mark.parametrize("head", HEADS)
def test_padded_cost_is_what_computing_pads_executes(mode, family, head):
    """Absolute counts: the charge for a padded text equals the trace of a pass that really computes its pads."""
    reducer = lat((8, 5, 3), head, family, counts="absolute", count_pad_queries=True)
    batch = batch_for(reducer, padded_to=15)
    trace = run(reducer, batch, mode).trace
    assert torch.equal(reducer.macs(trace, "sequence", 15), reducer.macs(trace))


def test_with_shares_pads_are_never_computed():
    reducer, batch = lat(), make_batch()
    trace = run(reducer, batch, "packed").trace
    for padding in ("batch", "sequence"):
        assert torch.equal(reducer.macs(trace, padding, 30), reducer.macs(trace))


def test_nothing_is_added_to_the_model():
    """[19] The weights load into the stock model and back."""
    reducer, stock = lat(), tiny_model("bert", seed=5)
    assert {f"model.{name}" for name in stock.state_dict()} == set(reducer.state_dict())
    reducer.model.load_state_dict(stock.state_dict())
    stock.load_state_dict(reducer.model.state_dict())


# Options -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"configuration": (4, 5, 3)}, r"non-increasing counts of at least 2, got \(4, 5, 3\)"),
        ({"configuration": (4, 2, 1)}, "at least 2, got"),
        ({"configuration": (4, 2)}, "length_configuration has 2 counts for 3 layers"),
        ({"max_length": 7}, "max_length must be at least 8, the longest length, got 7"),
        ({"configuration": None, "max_length": 1}, "max_length must be at least 2"),
        ({"counts": "relative"}, "counts must be one of shares, absolute, got 'relative'"),
        ({"kl_direction": "both"}, "kl_direction must be one of forward, reverse, got 'both'"),
        ({"operating_point": "star"}, "operating_point must be one of cheapest, best, speedup, got 'star'"),
        ({"length_drop": 1.2}, r"length_drop must be in \[0, 1\], got 1.2"),
        ({"layer_drop": -0.1}, r"layer_drop must be in \[0, 1\], got -0.1"),
        ({"mutants": -1}, "mutants must be >= 0, got -1"),
        ({"random_passes": -1}, "random_passes must be >= 0, got -1"),
        ({"count_pad_queries": True}, "count_pad_queries goes with counts='absolute'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        lat(**options)


def test_a_later_configuration_is_checked_too():
    reducer = tiny_reducer("lat")
    with pytest.raises(ValueError, match="has 2 counts for 3 layers"):
        reducer.set_options(length_configuration=(4, LEAST))
    assert reducer.options.length_configuration == (8, 5, 3)
    with pytest.raises(ValueError, match="lat has no option 'lengths'"):
        reducer.set_options(lengths=(4, 3, 2))
