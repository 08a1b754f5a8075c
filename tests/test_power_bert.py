"""PoWER-BERT: numbers of the paper and invariants of the method notes; [3] is the third of these."""

from __future__ import annotations

import pytest
import torch
import transformers

import methods
from methods.attention import AttentionScores
from methods.encoder import encode
from methods.masked import MaskedState
from tests.tiny import make_batch, tiny_model, tiny_reducer

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
RTE = (153, 125, 111, 105, 85, 80, 72, 48, 35, 27, 22, 5)


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
    """Section 5: a padded text costs what a pass that really computes its pads traces, their embeddings among it."""
    reducer, batch = tiny_reducer("power_bert", family), make_batch(padded_to=15)
    reducer.set_options(count_pad_queries=True)
    with torch.no_grad(), reducer.mode(mode):
        trace = reducer(**batch).trace
    assert torch.equal(reducer.macs(trace, "sequence", 15), reducer.macs(trace))
