"""What a head over tokens reads of what Transkimmer skims, forwarded or discarded; [2] is of the method notes."""

from __future__ import annotations

import pytest
import torch

from methods.encoder import encode
from methods.packing import pad
from tests.tiny import labels_for, make_batch, tiny_reducer

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def final_states(reducer, batch, mode):
    """Last state of every token, (batch, seq_len, hidden_size), 0 on pads: what a token-level head reads."""
    reducer.model.qa_outputs = torch.nn.Identity()
    with torch.no_grad():
        state = encode(reducer, reducer.check_inputs(**batch), mode, reducer.state_options())
        return state.outputs(reducer.backbone) * batch["attention_mask"].unsqueeze(-1), state.trace


def test_masked_equals_packed_on_every_forwarded_token():
    """[2] The renormalised default."""
    reducer, batch = tiny_reducer("transkimmer", head="span_qa"), make_batch()
    packed, trace = final_states(reducer, batch, "packed")
    masked, _ = final_states(reducer, batch, "masked")
    assert 0 < trace.ffn_tokens[:, -1].sum() < trace.ffn_tokens[:, 0].sum() < batch["attention_mask"].sum()
    torch.testing.assert_close(packed, masked, **TIGHT)


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_a_skimmed_token_is_carried_unchanged_to_the_output(mode):
    """[5] Bit for bit what the rejecting predictor read; for layer 0, the embedding."""
    reducer, batch = tiny_reducer("transkimmer", head="span_qa"), make_batch()
    read = []
    for predictor in reducer.predictors:
        predictor.register_forward_pre_hook(lambda module, arguments: read.append(arguments[0]))
    final, trace = final_states(reducer, batch, mode)
    live = batch["attention_mask"].bool()
    skimmed_by = []
    for layer, states in enumerate(read):
        states = states if mode == "masked" else pad(states, live)
        skimmed = live & ~trace.keep_masks[:, layer]
        skimmed_by.append(int(skimmed.sum()))
        assert torch.equal(final[skimmed], states[skimmed])
        live = trace.keep_masks[:, layer]
    assert skimmed_by[0] > 0 and sum(skimmed_by[1:]) > 0


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_a_discarded_token_gives_a_head_over_tokens_nothing_to_read(mode):
    """And what is kept is what it is where the others are forwarded."""
    batch = make_batch()
    forwarded, trace = final_states(tiny_reducer("transkimmer", head="span_qa"), batch, mode)
    reducer = tiny_reducer("transkimmer", head="span_qa")
    reducer.set_options(skimmed="discarded")
    discarded, other = final_states(reducer, batch, mode)
    kept = trace.keep_masks[:, -1]
    assert torch.equal(kept, other.keep_masks[:, -1]) and 0 < kept.sum() < batch["attention_mask"].sum()
    assert torch.equal(discarded[kept], forwarded[kept])
    assert (discarded[~kept] == 0).all() and (forwarded[~kept & batch["attention_mask"].bool()] != 0).any()


def test_a_head_over_texts_does_not_notice_what_becomes_of_skimmed_tokens():
    reducer, batch = tiny_reducer("transkimmer"), make_batch()
    with torch.no_grad():
        forwarded = reducer(**batch).logits
        reducer.set_options(skimmed="discarded")
        assert torch.equal(reducer(**batch).logits, forwarded)


def test_what_a_discarded_token_would_have_said_teaches_the_predictors():
    gradients = {}
    for skimmed in ("forwarded", "discarded"):
        reducer = tiny_reducer("transkimmer", head="span_qa").train()
        reducer.set_options(skimmed=skimmed)
        batch = make_batch((12, 11, 10, 9))
        torch.manual_seed(0)
        reducer(**batch, **labels_for(reducer, batch)).losses["task"].backward()
        gradients[skimmed] = reducer.predictors[-1][-1].bias.grad
    assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in gradients.values())
    assert not torch.allclose(gradients["forwarded"], gradients["discarded"])
