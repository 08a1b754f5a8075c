"""Gates and their gradients, masked attention itself, and a method registered on the fly."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional as F

import methods
from methods import Decision, Options, TokenReducer, Traits, scored_attention
from methods.attention import MaskedKeys, masked_attention, packed_attention
from methods.masked import straight_through
from methods.registry import register, unregister
from tests.tiny import LENGTHS, make_batch, tiny_model
from tests.told import TIGHT, agree, at, run, table

# Gates ---------------------------------------------------------------------------------------------------------------


def test_straight_through_has_the_hard_value_and_the_soft_slope():
    keep = torch.tensor([[True, False, True]])
    new, old = torch.randn(2, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    gate = keep.double().requires_grad_()
    value = straight_through(keep, gate, new, old)
    assert torch.equal(value, torch.where(keep.unsqueeze(-1), new, old))
    weights = torch.randn(1, 3, 4).double()
    slopes = torch.autograd.grad((value * weights).sum(), (gate, new))
    blend = gate.unsqueeze(-1) * new + (1 - gate.unsqueeze(-1)) * old
    for ours, soft in zip(slopes, torch.autograd.grad((blend * weights).sum(), (gate, new)), strict=True):
        torch.testing.assert_close(ours, soft, **TIGHT)


def soft_forward(model, ids, gates):
    """A text through the stock model's modules with every token weighted by the product of its gates so far."""
    hidden, product = model.bert.embeddings(ids), 1.0
    for layer, gate in zip(model.bert.encoder.layer, gates, strict=True):
        product = product * gate
        own = layer.attention.self
        query, key, value = (f(hidden).view(-1, 4, 8).transpose(0, 1) for f in (own.query, own.key, own.value))
        weights = (query @ key.transpose(1, 2) / 8**0.5).exp() * product
        context = ((weights / weights.sum(dim=-1, keepdim=True)) @ value).transpose(0, 1).flatten(1).unsqueeze(0)
        middle = layer.attention.output(context, hidden)
        new = layer.output(layer.intermediate(middle), middle)
        share = product.unsqueeze(-1)
        hidden = share * new + (1 - share) * hidden
    return model.classifier(model.bert.pooler(hidden)).square().sum()


def test_gates_have_the_slope_of_soft_removal(build):
    """Finite differences of the soft model at the hard gates, through attention, feed-forward and the cascade."""
    reducer, model, batch = build(), tiny_model("bert"), make_batch((7,))
    gates = torch.tensor([[1, 1, 0, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1, 0], [1, 0, 1, 1, 1, 0, 1]]).double()
    leaves = gates.clone().requires_grad_()
    for layer in range(3):
        reducer.plan["before_layer", layer] = lambda state, i=layer: Decision(
            keep=leaves[i].bool().unsqueeze(0), gate=leaves[i].unsqueeze(0)
        )
    with reducer.mode("masked"):
        value = reducer(**batch).logits.square().sum()
    value.backward()
    with torch.no_grad():
        assert value.item() == pytest.approx(soft_forward(model, batch["input_ids"], gates).item(), rel=1e-9)
        for layer, token in torch.cartesian_prod(torch.arange(3), torch.arange(1, 7)).tolist():
            step = torch.zeros_like(gates)
            step[layer, token] = 1e-6
            ahead, behind = (soft_forward(model, batch["input_ids"], g) for g in (gates + step, gates - step))
            slope = ((ahead - behind) / 2e-6).item()
            assert leaves.grad[layer, token].item() == pytest.approx(slope, rel=1e-5, abs=1e-7), (layer, token)
    assert (leaves.grad[:, 0] == 0).all()  # [CLS] has no choice
    assert leaves.grad[0, 2] != 0 and leaves.grad[1, 3] != 0 and leaves.grad[2, 1] != 0  # removed keys


def test_gates_of_attention_against_finite_differences():
    """`gradcheck` on the weights themselves, removed keys included."""
    query, key, value = torch.randn(3, 2, 5, 2, 3, dtype=torch.float64)
    allowed = torch.tensor([[True, False, True, True, False], [True, True, False, True, True]])
    keys = {"allowed": allowed, "visible": torch.ones_like(allowed)}

    def context(gate):
        return masked_attention(query, key, value, MaskedKeys(gate=gate, **keys))[0]

    gate = allowed.double().requires_grad_()
    assert torch.autograd.gradcheck(context, gate)
    (slope,) = torch.autograd.grad(context(gate).square().sum(), gate)
    assert (slope[~allowed] != 0).all()


def test_a_drop_without_gate_after_one_with_gate_removes_the_key(build):
    """A method may train some of its decisions only; the others must hide their tokens all the same."""
    reducer, batch = build(), make_batch()
    keeps = table(2, len(LENGTHS), 12, share=0.7)
    reducer.plan["before_layer", 0] = reducer.plan["before_layer", 1] = lambda state: Decision(
        keep=at(state, keeps[state.layer])
    )
    expected = run(reducer, batch, "packed").logits
    reducer.plan["before_layer", 0] = lambda state: Decision(keep=keeps[0], gate=keeps[0].double())
    torch.testing.assert_close(run(reducer, batch, "masked").logits, expected, **TIGHT)


def test_packed_mode_refuses_a_gate_with_gradient(build):
    reducer, batch = build(), make_batch()
    gate = torch.ones(sum(LENGTHS), dtype=torch.float64, requires_grad=True)
    reducer.plan["before_layer", 0] = lambda state: Decision(keep=gate.bool(), gate=gate)
    with pytest.raises(ValueError, match="cannot carry a gate's gradient; train in masked"), reducer.mode("packed"):
        reducer(**batch)
    run(reducer, batch, "packed")  # without gradients there is nothing to carry


# Attention -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_weights_of_the_kept_keys_sum_to_one(gated, biased):
    """Also where a removed key outscores every kept one by far."""
    query, key = torch.randn(2, 3, 6, 2, 4, dtype=torch.float64)
    key[:, 2] = 1000 * query[:, 0]
    allowed = table(3, 6, share=0.7)
    allowed[:, 0], allowed[:, 2] = True, False
    keys = MaskedKeys(
        allowed=allowed,
        visible=torch.ones_like(allowed),
        gate=allowed.double() if gated else None,
        bias=torch.randn(3, 6).double() if biased else None,
    )
    counted = allowed.double()[:, :, None, None].expand(3, 6, 2, 1)
    kept, received, _ = masked_attention(query, key, counted, keys, voters=torch.ones_like(allowed))
    torch.testing.assert_close(kept, torch.ones_like(kept), **TIGHT)
    assert (masked_attention(query, key, 1 - counted, keys)[0] == 0).all()
    assert (received[~allowed] == 0).all()


@pytest.mark.parametrize("cells", [1, 64 * 150, 150 * 150, 2 * 150 * 150, scored_attention.CELLS])
def test_scores_do_not_change_attention_and_blocks_do_not_change_scores(monkeypatch, cells):
    """Blocks of a row of a head, of some rows, a head, a text, all; the masked path holds everything at once."""
    monkeypatch.setattr(scored_attention, "CELLS", cells)
    lengths = [150, 1, 64, 70, 65, 150, 128]
    query, key, value = torch.randn(3, sum(lengths), 2, 4, dtype=torch.float64)
    plain, _, _ = packed_attention(query, key, value, lengths, lengths)
    context, received, diagonal = packed_attention(query, key, value, lengths, lengths, scores=True)
    torch.testing.assert_close(context, plain, **TIGHT)
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        everything = torch.ones(1, length, dtype=torch.bool)
        keys = MaskedKeys(allowed=everything, visible=everything)
        whole = masked_attention(*(x[rows].unsqueeze(0) for x in (query, key, value)), keys, voters=everything)
        without, _, _ = masked_attention(*(x[rows].unsqueeze(0) for x in (query, key, value)), keys)
        torch.testing.assert_close(without, whole[0], **TIGHT)
        for ours, reference in zip((context, received, diagonal), whole, strict=True):
            torch.testing.assert_close(ours[rows], reference[0], **TIGHT)
        start += length


def test_attention_equals_the_definition():
    """Masked, with bias and segments, against softmax by hand."""
    query, key, value = torch.randn(3, 2, 6, 2, 4, dtype=torch.float64)
    allowed, bias = torch.tensor([[1, 1, 0, 1, 1, 1], [1, 0, 1, 1, 1, 0]]).bool(), torch.randn(2, 6).double()
    segments = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    mask = allowed.unsqueeze(1) & (segments.unsqueeze(1) == segments.unsqueeze(2))
    logits = torch.einsum("bqhd,bkhd->bhqk", query, key) / 2 + bias[:, None, None, :]
    weights = F.softmax(logits.masked_fill(~mask.unsqueeze(1), -torch.inf), dim=-1)
    expected = torch.einsum("bhqk,bkhd->bqhd", weights, value)
    keys = MaskedKeys(allowed=allowed, visible=allowed, bias=bias, pairs=segments.unsqueeze(2) == segments.unsqueeze(1))
    for voters in (None, allowed):
        context, received, _ = masked_attention(query, key, value, keys, voters=voters)
        torch.testing.assert_close(context, expected, **TIGHT)
    torch.testing.assert_close(received, (weights.mean(dim=1) * allowed.unsqueeze(2)).sum(dim=1), **TIGHT)


# A method of one's own -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StrideOptions(Options):
    """Every `stride`-th token."""

    stride: int = 2


class Stride(TokenReducer):
    """Keeps every second token, scaled by something to train."""

    options_class = StrideOptions
    traits = Traits(title="Stride", dropped="forwarded")

    def build(self):
        self.weight = torch.nn.Parameter(torch.full((), 0.5))

    def before_layer(self, state):
        keep = state.positions % self.options.stride == 0
        return Decision(keep=keep, scale=self.weight.expand(keep.shape))


def test_a_new_method_is_one_class_and_one_registration(build, tmp_path):
    """It is listed, created, saved and loaded by name; afterwards it is unknown again."""
    assert "stride" not in methods.available()
    reducer = build(Stride, stride=3)
    assert methods.available()[0] == "dense" and "stride" in methods.available()
    assert methods.lookup("stride") is Stride
    batch = make_batch()
    trace = agree(reducer, batch).trace
    assert trace.ffn_tokens[:, 0].tolist() == [-(-n // 3) for n in LENGTHS]
    reducer.weight.data.fill_(0.75)
    reducer.save_pretrained(tmp_path)
    loaded = methods.load(tmp_path).double().eval()
    assert isinstance(loaded, Stride) and loaded.options == StrideOptions(stride=3)
    a, b = (run(model, batch, "packed").logits for model in (loaded, reducer))
    assert torch.equal(a, b)
    unregister("stride")
    with pytest.raises(KeyError, match="no method 'stride'"):
        methods.load(tmp_path)


def test_a_name_is_given_once(build):
    class Dense(TokenReducer):
        """Another class that wants a taken name."""

    with pytest.raises(ValueError, match="method 'dense' is registered already, by Dense"):
        register("dense")(Dense)
    assert methods.lookup("dense") is not Dense
