"""ToP: invariants of the method notes; [3] is the third of these. Losses and recipe are in test_top_training.py."""

from __future__ import annotations

import pytest
import torch
import transformers

import methods
from methods.backbone import Backbone
from methods.encoder import encode
from methods.hard_concrete import open_bits, open_probability, sample
from methods.mac_constraint import layer_macs, sparsity
from methods.ranking import bins_of
from tests.tiny import HEADS, batch_for, logits_of, make_batch, tiny_model, tiny_reducer
from tests.told import agree, run

TIGHT = {"rtol": 1e-9, "atol": 1e-9}

AVERAGE = {"cola": 11, "rte": 64, "qqp": 30, "mrpc": 53, "sst2": 25, "mnli": 39, "qnli": 51, "stsb": 31}
FIXED = {"cola": 64, "rte": 256, "qqp": 128, "mrpc": 128, "sst2": 64, "mnli": 128, "qnli": 128, "stsb": 64}
PADDING_FACTOR = {
    "cola": 5.89,
    "rte": 4.17,
    "qqp": 4.36,
    "mrpc": 2.45,
    "sst2": 2.58,
    "mnli": 3.35,
    "qnli": 2.55,
    "stsb": 2.08,
}


def decided(rows, gates=None, *, first=1, layers=3, head="classification", **options):
    """ToP with the pattern given as strings of bits, one per location, on a tiny model in eval mode."""
    model = tiny_model("bert", head, num_hidden_layers=layers)
    reducer = methods.create("top", model, bins=len(rows[0]), first_location=first, **options).double().eval()
    bits = torch.tensor([[int(bit) for bit in row] for row in rows])
    reducer.rank_loga.data.copy_(8.0 * bits - 4)
    reducer.gate_loga.data.copy_(8.0 * torch.tensor(gates or (1,) * len(rows)) - 4)
    return reducer


def kept(reducer, batch, mode="packed"):
    return run(reducer, batch, mode).trace.keep_masks


# Pattern -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["masked", "packed"])
@pytest.mark.parametrize(("rows", "gates"), [(("1111", "1111"), (1, 1)), (("0100", "0000"), (0, 0))])
def test_all_ranks_or_no_gate_give_the_stock_model(mode, rows, gates):
    """[1, 4] A closed gate ignores its row."""
    output = run(decided(rows, gates), make_batch(), mode)
    torch.testing.assert_close(output.logits, tiny_model("bert")(**make_batch()).logits, **TIGHT)


@pytest.mark.parametrize("head", HEADS)
def test_an_empty_row_leaves_the_first_token_alone(head):
    """[2]"""
    reducer = decided(("0000", "1111"), head=head)
    output = agree(reducer, batch_for(reducer))
    assert logits_of(output, make_batch()["attention_mask"]).isfinite().all()
    assert (output.trace.attention_tokens[:, 1:] == 1).all()


@pytest.mark.parametrize(("loga", "probability"), [(0.0, 0.8318), (4.605, 0.99798), (-4.605, 0.04714)])
def test_probability_of_an_open_variable(loga, probability):
    """[3] In closed form, and as often as samples are above 0."""
    assert open_probability(torch.tensor(loga)).item() == pytest.approx(probability, abs=5e-5)
    torch.manual_seed(0)
    drawn = sample(torch.full((200_000,), loga))
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert (drawn > 0).float().mean().item() == pytest.approx(probability, abs=3e-3)


def test_the_gradient_of_a_sample_is_zero_where_it_is_clipped():
    loga = torch.zeros(1000, requires_grad=True)
    drawn = sample(loga)
    drawn.sum().backward()
    clipped = (drawn == 0) | (drawn == 1)
    assert clipped.any() and torch.equal(loga.grad == 0, clipped)


@pytest.mark.parametrize(("loga", "prunes"), [(-1.597, True), (-1.600, False), (4.605, True), (-4.605, False)])
def test_a_gate_prunes_from_its_threshold_on(loga, prunes):
    """[4] 1 means prune; the threshold is 2/3 ln(1/11) = -1.5986."""
    reducer = decided(("1010", "1111"))
    reducer.gate_loga.data[0] = loga
    reduced = run(reducer, make_batch(), "packed").trace.ffn_tokens.sum() < 3 * sum((9, 4, 1, 7, 12))
    assert bool(reduced) == prunes


def test_as_many_ranks_go_as_are_expected_to():
    """Section 2.3: K minus the sum of probabilities, rounded; the lowest first, of equal ones the last."""
    loga = torch.tensor([4.0, -4.0, 0.5, -0.5, 1.0, 4.0])
    expected = 6 - open_probability(loga).sum()
    assert 1 < expected < 1.5
    assert open_bits(loga).tolist() == [True, False, True, True, True, True]
    level = torch.full((2, 4), -1.5986)  # a probability of one half each
    level[1] = -4.6
    assert open_bits(level).tolist() == [[True, True, False, False], [False] * 4]


def test_bins():
    """[16] Ten survivors and twenty bins; pitfall 6: the float32 formula never uses the last bin of twenty."""
    ranks, survivors = torch.arange(10), torch.tensor(10)
    assert bins_of(ranks, survivors, 20, "float32").tolist() == [0, 1, 3, 5, 7, 9, 11, 13, 15, 17]
    assert bins_of(ranks, survivors, 20, "integer").tolist() == list(range(0, 20, 2))
    twenty, count = torch.arange(20), torch.tensor(20)
    assert bins_of(twenty, count, 20, "integer").tolist() == list(range(20))
    assert bins_of(twenty, count, 20, "float32").tolist() == [0, *range(19)]


@pytest.mark.parametrize("mode", ["masked", "packed"])
@pytest.mark.parametrize("binning", ["integer", "float32"])
def test_a_bit_decides_for_the_ranks_of_its_bin(mode, binning):
    """Section 2.2: the second location ranks its own survivors; the pattern need not be monotone."""
    reducer, batch = decided(("10111", "01101"), binning=binning), make_batch((12, 9))
    seen, original = [], reducer._bins

    def watch(state, alive):
        seen.append((state.scores.received, state.positions))
        return original(state, alive)

    reducer._bins = watch
    masks = kept(reducer, batch, mode)
    for text, length in enumerate((12, 9)):
        alive = list(range(1, length))
        for layer, row in enumerate(("10111", "01101")):
            received, positions = (x.flatten() for x in seen[layer])
            if mode == "masked":
                own = slice(text * 12, text * 12 + 12)
            else:
                first = positions.eq(0).nonzero().flatten().tolist()[text]
                own = slice(first, first + len(alive) + 1)
            score = dict(zip(positions[own].tolist(), received[own].tolist(), strict=True))
            order = sorted(alive, key=lambda token, score=score: -score[token])
            bins = bins_of(torch.arange(len(order)), torch.tensor(len(order)), 5, binning).tolist()
            alive = sorted(token for token, place in zip(order, bins, strict=True) if row[place] == "1")
            assert masks[text, layer].nonzero().flatten().tolist() == [0, *alive]


# Survivors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("padded_to", [None, 20])
def test_masking_equals_removal(head, padded_to):
    """[8] Votes of surviving rows alone in both modes."""
    reducer = decided(("1011", "0111", "1110"), layers=4, head=head)
    agree(reducer, batch_for(reducer, padded_to=padded_to))


def survivors_of(reducer, batch):
    """Tokens that enter the layer of each location, (locations, batch, seq_len), in masked mode."""
    sets, original = [], reducer._prune

    def watch(state, location):
        decision = original(state, location)
        if location in reducer.locations:
            sets.append(state.live if decision is None else state.live & (decision.keep | state.first))
        return decision

    reducer._prune = watch
    with torch.no_grad():
        encode(reducer, reducer.check_inputs(**batch), "masked", reducer.state_options())
    return torch.stack(sets)


def test_votes_of_removed_tokens_may_change_later_locations():
    """[8] As released, what is hidden still votes: the first active location agrees, the others need not."""
    batch, differs = make_batch((30, 30)), []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        rows = ["".join("01"[int(bit > 0.4)] for bit in torch.rand(29, generator=generator)) for _ in range(3)]
        real, released = (survivors_of(decided(rows, layers=4, masks_only=masks), batch) for masks in (False, True))
        assert torch.equal(real[0], released[0])
        differs.append(not torch.equal(real, released))
    assert any(differs)


def test_padding_changes_the_ranking_only_as_released():
    """Pitfall 3: there, pads vote."""
    differs = {}
    for masks in (False, True):
        reducer = decided(("1010", "1100"), masks_only=masks)
        narrow, wide = (survivors_of(reducer, make_batch((9, 7, 8), padded_to=width)) for width in (9, 30))
        differs[masks] = not torch.equal(narrow, wide[..., :9])
    assert differs == {False: False, True: True}


@pytest.mark.parametrize("head", HEADS)
def test_as_released_saves_nothing(head):
    """Pitfall 4: hidden tokens are computed, and charged."""
    options = methods.lookup("top").traits.as_released
    reducer = decided(("1010", "0110"), head=head, **options)
    batch = batch_for(reducer)
    assert reducer.run_mode == "masked"
    with torch.no_grad():
        trace = reducer(**batch).trace
    assert (survivors_of(reducer, batch)[-1].sum(dim=1) < trace.input_lengths)[trace.input_lengths > 4].all()
    assert torch.equal(reducer.macs(trace), reducer.backbone.dense_macs(trace.input_lengths))


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_leaving_before_or_after_the_feed_forward_is_the_same(mode):
    """[9] Identical survivors and logits; leaving before it is cheaper."""
    early, late = decided(("1011", "0110")), decided(("1011", "0110"))
    late.drops_early = False
    a, b = (run(reducer, make_batch(), mode) for reducer in (early, late))
    assert torch.equal(a.trace.keep_masks[:, :-1], b.trace.keep_masks[:, 1:])
    assert torch.equal(a.trace.attention_tokens, b.trace.attention_tokens)
    torch.testing.assert_close(a.logits, b.logits, **TIGHT)
    assert early.macs(a.trace).sum() < late.macs(b.trace).sum()


@pytest.mark.parametrize(("mode", "released"), [("masked", False), ("packed", False), ("masked", True)])
def test_span_heads_read_the_last_state_alive(mode, released):
    """Section 2.5: the output of the last layer at whose input a token was alive, by the stock model's own layers."""
    batch = make_batch((12, 9))
    reducer = decided(("1011", "0110"), head="span_qa", masks_only=released)
    entered = torch.stack((batch["attention_mask"].bool(), *survivors_of(reducer, batch)))
    model = tiny_model("bert", "span_qa")
    with torch.no_grad():
        hidden = last = model.bert.embeddings(batch["input_ids"])
        for layer, alive in zip(model.bert.encoder.layer, entered, strict=True):
            hidden = layer(hidden, attention_mask=alive[:, None, None])
            last = torch.where(alive.unsqueeze(-1), hidden, last)
        expected = model.qa_outputs(last)
    mask = batch["attention_mask"]
    assert (entered[2] != entered[1]).any() and (entered[1] != entered[0]).any()
    torch.testing.assert_close(logits_of(run(reducer, batch, mode), mask), expected * mask.unsqueeze(-1), **TIGHT)


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_survivors_are_nested_and_follow_their_tokens(mode):
    """[10] Permuting all tokens but [CLS], with their position ids, permutes what is kept."""
    reducer = decided(("1011", "0111", "1101"), layers=4)
    inputs = reducer.check_inputs(**make_batch((12, 12)))
    order = torch.cat((torch.tensor([0]), 1 + torch.randperm(11, generator=torch.Generator().manual_seed(2))))
    ids, positions = inputs.input_ids[:, order], inputs.position_ids[:, order]
    permuted = methods.Inputs(input_ids=ids, attention_mask=inputs.attention_mask, position_ids=positions)
    with torch.no_grad(), reducer.mode(mode):
        a, b = reducer.run(inputs), reducer.run(permuted)
    masks = a.trace.keep_masks
    assert not (masks[:, 1:] & ~masks[:, :-1]).any() and (masks[:, 1:] != masks[:, :-1]).any()
    assert torch.equal(masks[..., order], b.trace.keep_masks)
    torch.testing.assert_close(a.logits, b.logits, **TIGHT)


def test_scores_are_counted_only_where_a_decision_needs_them():
    """The path that also gives scores is slower: it is taken neither before a closed gate nor before a full row."""
    reducer = decided(("1011", "1111", "0111"), (0, 1, 1), layers=4)
    assert [reducer.needs_scores(layer) for layer in range(4)] == [False, False, True, False]


# Cost ----------------------------------------------------------------------------------------------------------------


def by_hand(n, fed, d=768, f=3072, heads=12):
    """Section 2.7."""
    return 4 * n * d * d + 2 * n * n * d + heads * n * n + 2 * fed * d * f


def base_sized():
    """The backbone of BERT-base, without its weights."""
    with torch.device("meta"):
        return Backbone(transformers.BertForSequenceClassification(transformers.BertConfig()))


@pytest.mark.parametrize(("early", "fed"), [(True, 25), (False, 49)])
def test_two_layers_by_hand(early, fed):
    """[7] The first feed-forward runs on what the second layer keeps, the last on its own; not so with a span head."""
    shares = torch.tensor([1.0, 0.5], dtype=torch.float64)
    cost = layer_macs(base_sized(), shares, torch.tensor([49]), drops_early=early)
    assert cost.item() == pytest.approx(by_hand(49, fed) + by_hand(25, 25), rel=1e-12)


@pytest.mark.parametrize("head", ["classification", "span_qa"])
def test_sparsity_of_a_decided_pattern(head):
    """[6] Against a plain loop; all ones save nothing."""
    reducer = decided(("11101", "00100", "01111"), (1, 0, 1), layers=4, head=head)
    shares = reducer.kept_shares(decided=True)
    assert shares.tolist() == pytest.approx([1.0, 0.8, 0.8, 0.64])
    lengths, expected = torch.tensor([5, 12, 33]), []
    for length in lengths.tolist():
        costs = []
        for kept_shares in ((1.0, 0.8, 0.8, 0.64), (1.0,) * 4):
            n, total = [(length - 1) * share + 1 for share in kept_shares], 0.0
            for layer in range(4):
                fed = n[min(layer + 1, 3)] if head == "classification" else n[layer]
                total += by_hand(n[layer], fed, 32, 48, 4)
            costs.append(total)
        expected.append(1 - costs[0] / costs[1])
    assert reducer.sparsity(shares, lengths).tolist() == pytest.approx(expected, rel=1e-9)
    assert (reducer.sparsity(torch.ones(4), lengths) == 0).all()


@pytest.mark.parametrize("head", ["classification", "span_qa"])
def test_the_constraint_counts_what_is_executed(head):
    """Where bins divide the ranks evenly, the share of MACs saved is the trace's, but for softmax and head."""
    reducer = decided(("11100", "01111"), head=head)
    lengths = (26, 26)  # 25 ranks, 15 after the first location, 12 after the second
    with torch.no_grad():
        trace = reducer(**make_batch(lengths)).trace
    d, f, heads = 32, 48, 4
    executed = (4 * d * d * trace.attention_tokens + (2 * d + heads) * trace.attention_pairs).sum(dim=1)
    executed = executed + (2 * d * f * trace.ffn_tokens).sum(dim=1)
    counted = layer_macs(
        reducer.backbone, reducer.kept_shares(decided=True), torch.tensor(lengths), drops_early=reducer.drops_early
    )
    torch.testing.assert_close(counted, executed.double(), rtol=1e-9, atol=0)
    assert trace.attention_tokens[0].tolist() == [26, 16, 13]


def test_expected_shares():
    """Section 2.6: 1 - (1 - mean P(rank)) P(gate), multiplied up over locations; layers before them keep all."""
    reducer = decided(("10", "10"), layers=4, first=2)
    reducer.rank_loga.data.copy_(torch.tensor([[0.0, 4.605], [-4.605, 0.0]]))
    reducer.gate_loga.data.copy_(torch.tensor([4.605, 0.0]))
    first = 1 - (1 - (0.8318 + 0.99798) / 2) * 0.99798
    second = 1 - (1 - (0.04714 + 0.8318) / 2) * 0.8318
    assert reducer.kept_shares().tolist() == pytest.approx([1, 1, first, first * second], abs=2e-5)


@pytest.mark.parametrize("task", PADDING_FACTOR)
def test_padding_factors(task):
    """[15] Section 5: how many times more a text padded to the task's length costs, with softmax or without it."""
    average, fixed = torch.tensor([AVERAGE[task]]), torch.tensor([FIXED[task]])
    ones = torch.ones(12, dtype=torch.float64)
    backbone = base_sized()
    full, own = (layer_macs(backbone, ones, n, drops_early=True).item() for n in (fixed, average))
    assert full / own == pytest.approx(PADDING_FACTOR[task], abs=0.006)
    layers = [int(backbone.dense_macs(n) - backbone.head_macs(n)) for n in (fixed, average)]
    assert layers[0] / layers[1] == pytest.approx(PADDING_FACTOR[task], abs=0.006)


def test_speed_up_of_the_released_mask_file():
    """Section 5, SQuAD: the kept ratios of the file give 1.83 to 1.84 without padding."""
    ratios = torch.tensor([1, 1, 1, 1, 1, 0.467, 0.64, 1, 1, 1, 1, 0.48], dtype=torch.float64)
    for length in (152, 180):
        saved = sparsity(base_sized(), ratios.cumprod(0), torch.tensor([length]), drops_early=True).item()
        assert 1.825 < 1 / (1 - saved) < 1.845


# Options -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_sparsity": 1.1}, r"target_sparsity must be in \[0, 1\], got 1.1"),
        ({"binning": "float"}, "binning must be 'integer' or 'float32', got 'float'"),
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"bins": 0}, "bins must be at least 1, got 0"),
        ({"first_location": 0}, "first_location must be at least 1, got 0"),
        ({"first_location": 3}, "first_location 3 is beyond the last of 3 layers, 2"),
        ({"ranked_tokens": 0}, "ranked_tokens must be at least 1, got 0"),
        ({"ranking_weight": -1.0}, "ranking_weight must be at least 0, got -1.0"),
        ({"constraint_warmup": 2.0}, r"constraint_warmup must be in \[0, 1\], got 2.0"),
        ({"tolerance": -0.1}, r"tolerance must be in \[0, 1\], got -0.1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        methods.create("top", tiny_model("bert"), **options)


@pytest.mark.parametrize(("layers", "locations", "distilled"), [(12, range(2, 12), [1, 2, 3]), (6, range(2, 6), [1])])
def test_locations_and_distilled_layers_scale_with_depth(layers, locations, distilled):
    reducer = methods.create("top", tiny_model("bert", num_hidden_layers=layers))
    assert reducer.locations == locations and list(reducer.ranked_layers) == distilled


def test_it_starts_by_pruning_nothing():
    """Section 2.3: every rank open, every gate closed, multipliers at 0."""
    reducer = methods.create("top", tiny_model("bert"), bins=7)
    assert (reducer.rank_loga - 10).abs().max() < 0.1 and (reducer.gate_loga + 10).abs().max() < 0.1
    assert reducer.lambda_1 == reducer.lambda_2 == 0
    assert reducer.kept_shares(decided=True).tolist() == [1.0] * 3
    assert tiny_reducer("top").kept_shares(decided=True).min() < 1
