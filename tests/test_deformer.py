"""DeFormer: numbers of the paper and invariants of the method notes; [3] is the third of these. Its cache has a file of
its own, as has its training."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import transformers

import methods
from methods.encoder import encode
from methods.passage_cache import speedup_at_reuse
from tests.pair_batches import PAIRS, pair_batch
from tests.tiny import FAMILIES, HEADS, logits_of, tiny_model
from tests.told import TIGHT, agree, run

# Task: tokens of the first and second slot, the cached side, and the speed-up at k = 9 (section 4).
PUBLISHED = {
    "squad": (27, 293, "second", 3.23),
    "race": (32, 480, "second", 3.42),
    "boolq": (17, 303, "second", 3.48),
    "mnli": (87, 33, "first", 2.21),
    "qqp": (42, 58, "second", 1.78),
}
BY_SPLIT = (1.08, 1.18, 1.30, 1.44, 1.62, 1.85, 2.16, 2.59, 3.23, 4.30, 6.41)  # SQuAD, k = 1 .. 11
BY_REUSE = {1: 1.01, 2: 1.54, 5: 2.24, 10: 2.65, 100: 3.16}  # SQuAD, k = 9


def deformer(family="bert", head="classification", **options):
    return methods.create("deformer", tiny_model(family, head), **options).double().eval()


def base_sized(**options):
    """BERT-base, shapes only."""
    with torch.device("meta"):
        return methods.create("deformer", transformers.BertForQuestionAnswering(transformers.BertConfig()), **options)


def states_of(reducer, batch, mode):
    """The output of each layer, (*tokens, hidden_size), and the segment of each token."""
    seen, hook = [], reducer.after_layer

    def watch(state):
        seen.append((state.hidden, state.at(state.inputs.segments), state.real))
        return hook(state)

    reducer.after_layer = watch
    with torch.no_grad():
        encode(reducer, reducer.check_inputs(**batch), mode, reducer.state_options())
    del reducer.after_layer
    return seen


# The model -----------------------------------------------------------------------------------------------------------


def test_it_has_the_parameters_of_the_stock_model():
    """[1] No new parameter, and a stock model's weights load without a missing key."""
    reducer, stock = deformer(), tiny_model("bert", seed=5)
    assert sum(p.numel() for p in reducer.parameters()) == sum(p.numel() for p in stock.parameters())
    missing = reducer.model.load_state_dict(stock.state_dict())
    assert not missing.missing_keys and not missing.unexpected_keys


@pytest.mark.parametrize("mode", ["masked", "packed"])
@pytest.mark.parametrize("split", [0, 1, 2, 3])
def test_lower_layers_run_each_text_alone(split, mode):
    """[2] Two calls of the stock model's own layers per pair, then one on both, positions and types as in 2.1."""
    reducer, model, batch = deformer(split=split), tiny_model("bert"), pair_batch()
    output = run(reducer, batch, mode)
    for row, (first, second) in enumerate(PAIRS):
        sides = []
        for (seed, length), kind in ((first, 0), (second, 1)):
            alone = pair_batch((((seed, length), (0, 0)),))["input_ids"]
            with torch.no_grad():
                hidden = model.bert.embeddings(alone, torch.full_like(alone, kind), torch.arange(length).unsqueeze(0))
                for layer in model.bert.encoder.layer[:split]:
                    hidden = layer(hidden)
            sides.append(hidden)
        with torch.no_grad():
            hidden = torch.cat(sides, dim=1)
            for layer in model.bert.encoder.layer[split:]:
                hidden = layer(hidden)
            expected = model.classifier(model.bert.pooler(hidden))
        torch.testing.assert_close(output.logits[row : row + 1], expected, **TIGHT)


@pytest.mark.parametrize("mode", ["masked", "packed"])
@pytest.mark.parametrize("changed", ["first", "second"])
def test_a_text_does_not_notice_the_other_below_the_split(changed, mode):
    """[3] Bit by bit, whatever the other one says; above, it does. A longer one changes rounding at most."""
    reducer = deformer(split=2)
    side = ("first", "second").index(changed)
    other = tuple(
        tuple((seed + 50 if i == side else seed, length) for i, (seed, length) in enumerate(pair)) for pair in PAIRS
    )
    before, after = (states_of(reducer, pair_batch(pairs), mode) for pairs in (PAIRS, other))
    for layer in (0, 1, 2):
        (a, segments, real), (b, _, _) = before[layer], after[layer]
        same = (segments != side) & real
        assert torch.equal(a[same], b[same]) is (layer < 2)
        assert not torch.equal(a[~same & real], b[~same & real])
    longer = tuple(tuple((s, n + 3 if i == side else n) for i, (s, n) in enumerate(pair)) for pair in PAIRS)
    a, segments, real = before[1]
    b, segments_b, real_b = states_of(reducer, pair_batch(longer), mode)[1]
    torch.testing.assert_close(a[(segments != side) & real], b[(segments_b != side) & real_b], **TIGHT)


@pytest.mark.parametrize("head", ["classification", "span_qa"])
@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_split_0_is_a_joint_model_with_positions_begun_anew(mode, head):
    """[5] The stock model, fed with positions 0 .. q-1, 0 .. p-1 and padding between the texts."""
    reducer, model = deformer(head=head, split=0), tiny_model("bert", head)
    output, batch = run(reducer, pair_batch(), mode), pair_batch(slots=(7, 9))
    positions = torch.cat((torch.arange(7), torch.arange(9))).expand_as(batch["input_ids"])
    with torch.no_grad():
        stock = model(**batch, position_ids=positions)
    if head == "classification":
        torch.testing.assert_close(output.logits, stock.logits, **TIGHT)
    else:
        for name in ("start_logits", "end_logits"):
            close, spread = (b["attention_mask"].bool() for b in (pair_batch(), batch))
            torch.testing.assert_close(output[name][close], stock[name][spread], **TIGHT)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_padding_of_either_slot_changes_no_span_logit(mode, family):
    """[6] Texts end to end, padded to slots or padded behind: the same logits on real tokens."""
    reducer = deformer(family, "span_qa")
    pad_id = reducer.backbone.config.pad_token_id
    plain, *others = (
        pair_batch(pad_id=pad_id, **layout) for layout in ({}, {"slots": (7, 9)}, {"slots": (9, 8)}, {"padded_to": 20})
    )
    expected = logits_of(run(reducer, plain, mode), plain["attention_mask"])[plain["attention_mask"].bool()]
    for batch in others:
        found = logits_of(run(reducer, batch, mode), batch["attention_mask"])[batch["attention_mask"].bool()]
        torch.testing.assert_close(found, expected, **TIGHT)


def test_a_gold_span_of_the_second_text_is_learnt_where_it_stands():
    """[13] With slots its index is offset by the slot, here by the first text's own length; the loss is the same."""
    reducer, losses = deformer(head="span_qa"), []
    inside = torch.tensor([2, 0, 1, 7, 3])
    for layout, offset in (({}, [4, 3, 6, 2, 4]), ({"slots": (7, 9)}, [7] * 5)):
        gold, batch = torch.tensor(offset) + inside, pair_batch(**layout)
        starts = (reducer.check_inputs(**batch).segments == 1).long().argmax(dim=1)
        assert torch.equal(gold - starts, inside)
        losses.append(reducer(**batch, start_positions=gold, end_positions=gold).loss)
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_both_modes_agree_at_every_split(family, head):
    for split in (0, 1, 3):
        reducer = deformer(family, head, split=split)
        agree(reducer, pair_batch(pad_id=reducer.backbone.config.pad_token_id))


# Where the second text begins ----------------------------------------------------------------------------------------


def test_separators_tell_the_texts_apart_where_token_types_do_not():
    """RoBERTa's <s> a </s></s> b </s>: the second text is </s> b </s>; its positions begin behind the padding id."""
    reducer = deformer("roberta")
    ids = torch.tensor([[0, 7, 8, 2, 2, 9, 2, 1], [0, 7, 2, 2, 9, 10, 11, 2]])
    for types in (None, torch.zeros_like(ids)):
        inputs = reducer.check_inputs(ids, ids != 1, types)
        assert inputs.segments.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1]]
        assert inputs.position_ids.tolist() == [[2, 3, 4, 5, 2, 3, 4, 1], [2, 3, 4, 2, 3, 4, 5, 6]]
    chosen = deformer(separator_id=3)  # BERT without token types, its configuration silent about [SEP]
    inputs = chosen.check_inputs(torch.tensor([[1, 7, 3, 9, 9, 3]]))
    assert inputs.segments.tolist() == [[0, 0, 0, 1, 1, 1]] and inputs.position_ids.tolist() == [[0, 1, 2, 0, 1, 2]]


def test_positions_run_on_where_that_is_chosen():
    inputs = deformer(restart_positions=False).check_inputs(**pair_batch(PAIRS[:1]))
    assert inputs.position_ids.tolist() == [list(range(9))] and inputs.segments.sum() == 5


def test_a_text_without_a_second_one_is_refused():
    """One sentence that names the row and what to do; whole, as one text, where the option says so."""
    batch = pair_batch()
    batch["token_type_ids"][2] = 0
    with pytest.raises(ValueError, match=r"row 2 has no second text.*token_type_ids.*single_texts=True"):
        deformer()(**batch)
    with pytest.raises(ValueError, match="row 0 has no second text"):
        deformer("roberta")(input_ids=torch.tensor([[0, 7, 8, 2]]))
    reducer = deformer(single_texts=True)
    output = agree(reducer, batch)
    single = {name: table[2:3] for name, table in batch.items()}
    with torch.no_grad():
        torch.testing.assert_close(output.logits[2:3], tiny_model("bert")(**single).logits, **TIGHT)


@pytest.mark.parametrize("types", [[1, 1, 1, 1], [0, 1, 0, 1], [0, 2, 1, 1], [0, 0, 1, 2]])
def test_token_types_out_of_order_are_refused(types):
    with pytest.raises(ValueError, match="token_type_ids of row 1 must be 0 on the first text and 1 on the whole"):
        deformer()(input_ids=torch.full((2, 4), 7), token_type_ids=torch.tensor([[0, 0, 1, 1], types]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cached_side": "passage"}, "cached_side must be one of first, second, got 'passage'"),
        ({"student": "random"}, "student must be one of teacher, upper, initial"),
        ({"lrs_over": "all"}, "lrs_over must be one of real, padded"),
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"kd_weight": -1.0}, "kd_weight must be >= 0"),
        ({"split": -1}, "split must be >= 0"),
        ({"split": 4}, "split is 4 for 3 layers"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        deformer(**options)


# Cost ----------------------------------------------------------------------------------------------------------------


def costs(first, second, side, split=9):
    """Full, online and offline MACs, and those executed with nothing cached, of one pair on BERT-base."""
    reducer = base_sized(split=split, cached_side=side)
    trace = methods.Trace(torch.ones(1, first + second, dtype=torch.bool), 12)
    trace.first_lengths, rows = torch.tensor([first]), torch.tensor([0])
    for layer in range(12):
        pairs = first**2 + second**2 if layer < split else (first + second) ** 2
        trace.record_attention(layer, rows, torch.tensor([first + second]), torch.tensor([pairs]))
        trace.record_ffn(layer, rows, torch.tensor([first + second]), trace.attention_mask)
    full = reducer.backbone.dense_macs(trace.input_lengths)
    return [int(x) for x in (full, reducer.online_macs(trace), reducer.offline_macs(trace), reducer.macs(trace))]


@pytest.mark.parametrize("task", PUBLISHED)
def test_published_speedups(task):
    """[10] Those of five tasks at k = 9, from their slots."""
    first, second, side, speedup = PUBLISHED[task]
    full, online, _, _ = costs(first, second, side)
    assert round(full / online, 2) == speedup


def test_without_a_cache_next_to_nothing_is_saved():
    """[10] 1.008 on SQuAD, and full FLOPs of 58.1 G against 18.0 G with a cache."""
    full, online, offline, executed = costs(27, 293, "second")
    assert round(full / executed, 3) == 1.008 and executed == online + offline
    assert (round(2 * full / 1e9, 1), round(2 * online / 1e9, 1)) == (58.1, 18.0)


def test_speedup_rises_with_split_and_with_reuse():
    """[11] Strictly; used once, the cache gives what goes without it. The values of section 4 along the way."""
    by_split = [costs(27, 293, "second", split) for split in range(12)]
    speedups = [full / online for full, online, _, _ in by_split]
    assert all(a < b for a, b in pairwise(speedups))
    assert tuple(round(speedup, 2) for speedup in speedups[1:]) == BY_SPLIT
    uncached = [full / executed for full, _, _, executed in by_split]
    assert all(a < b for a, b in pairwise(uncached))
    full, online, offline, executed = by_split[9]
    by_reuse = {r: speedup_at_reuse(full, online, offline, r) for r in BY_REUSE}
    assert {r: round(speedup, 2) for r, speedup in by_reuse.items()} == BY_REUSE
    assert sorted(by_reuse.values()) == list(by_reuse.values()) and by_reuse[1] == full / executed


@pytest.mark.parametrize("side", ["first", "second"])
def test_both_accounts_stand_beside_what_was_executed(side):
    """Padding belongs to the second text; with padding to 20 tokens the squares are those of the padded texts."""
    reducer = deformer("albert", "span_qa", split=2, cached_side=side)
    trace = run(reducer, pair_batch(), "packed").trace
    length, c = torch.full((5,), 20), reducer.backbone.layer_macs
    first = torch.tensor([4, 3, 6, 2, 4])
    second = 20 - first
    cached, other = (first, second) if side == "first" else (second, first)
    per_token = reducer.backbone.embedding_macs()
    rest = per_token * length + reducer.backbone.head_macs(length)
    accounts = list(reducer.extra_costs(trace, length).values())
    assert torch.equal(accounts[0], 2 * c(other) + c(length) + rest)
    assert torch.equal(accounts[1], accounts[0] + 2 * c(cached) + per_token * cached)
    assert torch.equal(reducer.macs(trace, "sequence", 20), 2 * (c(first) + c(second)) + c(length) + rest)
