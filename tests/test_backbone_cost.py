"""MACs by formula against what torch and torchprofile count, and the arithmetic of padding by hand."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

import methods
from methods.testing.promises import executed_macs
from tests.tiny import batch_for, make_batch, tiny_model, tiny_reducer

DENSE_128 = 11_174_217_216  # BERT-base, 128 tokens, two labels
NORMS_128 = 25 * 128 * 768  # torchprofile charges one per element of every layer norm
SCALING_128 = 12 * 12 * 128 * 128  # and of the multiplication that scales eager attention scores


class Positional(torch.nn.Module):
    """torchprofile passes arguments by position and wants tensors back."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids=input_ids).logits


def profiled(model, ids):
    torchprofile = pytest.importorskip("torchprofile")
    with torch.no_grad():
        return torchprofile.profile_macs(Positional(model), ids)


@pytest.fixture(scope="module")
def base():
    """BERT-base with random weights and plain attention; 128 tokens."""
    torch.manual_seed(0)
    config = transformers.BertConfig(attn_implementation="eager")
    model = transformers.BertForSequenceClassification(config).eval()
    return model, torch.randint(5, 1000, (1, 128))


def test_bert_base_by_formula():
    """The reducer's count of a dense pass, in every padding setting."""
    with torch.device("meta"):
        reducer = methods.create("dense", transformers.BertForSequenceClassification(transformers.BertConfig()))
    lengths = torch.tensor([128])
    trace = methods.Trace(torch.ones(1, 128, dtype=torch.bool), 12)
    for layer in range(12):
        trace.record_attention(layer, torch.tensor([0]), lengths, lengths**2)
        trace.record_ffn(layer, torch.tensor([0]), lengths, torch.arange(128))
    n, d = 128, 768
    by_hand = 12 * (4 * n * d * d + 2 * n * n * d + 8 * n * d * d) + d * d + 2 * d
    assert by_hand == DENSE_128
    assert int(reducer.macs(trace)) == DENSE_128
    assert int(reducer.macs(trace, "batch", 128)) == int(reducer.macs(trace, "sequence", 128)) == DENSE_128


def test_bert_base_by_torch(base):
    """FlopCounterMode counts two operations for each multiply-add."""
    model, ids = base
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(ids)
    assert counter.get_total_flops() == 2 * DENSE_128


def test_bert_base_by_torchprofile(base):
    """Exactly the formula plus the two kinds of element-wise work that torchprofile charges for."""
    assert (NORMS_128, SCALING_128) == (2_457_600, 2_359_296)
    assert profiled(*base) == DENSE_128 + NORMS_128 + SCALING_128


@pytest.mark.filterwarnings("ignore:No handlers found", "ignore::torch.jit.TracerWarning")
def test_a_skimming_text_by_torchprofile():
    """Transkimmer, packed, six layers that all drop something: beyond the formula, layer norms and nothing else."""
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=48, num_hidden_layers=6, num_attention_heads=4, intermediate_size=96
    )
    torch.manual_seed(0)
    reducer = methods.create("transkimmer", transformers.BertForSequenceClassification(config)).eval()
    for depth, predictor in enumerate(reducer.predictors):
        torch.nn.init.normal_(predictor[-1].weight, std=0.3)
        predictor[-1].bias.data = torch.tensor([0.0, 0.5 + 0.3 * depth])
    ids = torch.randint(5, 60, (1, 100))
    with torch.no_grad():
        trace = reducer(input_ids=ids).trace
    kept = trace.ffn_tokens[0]
    entered = torch.cat((torch.tensor([100]), kept[:-1]))
    assert (kept < entered).all() and kept[5] > 1
    norms = 48 * (100 + 2 * int(kept.sum()) + 2 * int(entered.sum()))  # embeddings, two a layer, two a predictor
    assert profiled(reducer, ids) == int(reducer.macs(trace)) + norms


# Padding, by hand ----------------------------------------------------------------------------------------------------
# Two layers, d = 32, f = 48, three labels; one text of 5 tokens and one of 3, padded to 5 (batch) and to 8 (sequence).

LINEAR_ATTENTION, PAIR, LINEAR_FFN = 4 * 32 * 32, 2 * 32, 2 * 32 * 48
HEAD = 32 * 32 + 32 * 3


def layer(attention, ffn):
    """MACs of a layer whose attention runs on `attention` tokens and whose feed-forward runs on `ffn`."""
    return LINEAR_ATTENTION * attention + PAIR * attention**2 + LINEAR_FFN * ffn


def costs(name, options, decide=lambda reducer: None):
    """MACs of both texts for each padding setting."""
    model = tiny_model("bert", num_hidden_layers=2)
    reducer = methods.create(name, model, **options).double().eval()
    decide(reducer)
    with torch.no_grad():
        trace = reducer(**make_batch((5, 3))).trace
    settings = {"none": None, "batch": 5, "sequence": 8}
    return {padding: reducer.macs(trace, padding, length).tolist() for padding, length in settings.items()}


def test_dense_computes_pads():
    assert costs("dense", {}) == {
        "none": [2 * layer(5, 5) + HEAD, 2 * layer(3, 3) + HEAD],
        "batch": [2 * layer(5, 5) + HEAD] * 2,
        "sequence": [2 * layer(8, 8) + HEAD] * 2,
    }


def test_deebert_computes_pads_until_the_exit():
    """Both texts leave after the first layer: one layer and one off-ramp, no head."""
    expected = {
        "none": [layer(5, 5) + HEAD, layer(3, 3) + HEAD],  # an off-ramp costs what the head does
        "batch": [layer(5, 5) + HEAD] * 2,
        "sequence": [layer(8, 8) + HEAD] * 2,
    }
    assert costs("deebert", {"threshold": 2.0}) == expected
    never = costs("deebert", {"threshold": 0.0})
    assert never["sequence"] == [2 * layer(8, 8) + 2 * HEAD] * 2


def test_power_bert_pays_for_its_counts_in_padded_inputs():
    """Counts (4, 2) are absolute: the padded text pays for all of them, the unpadded one for what it has."""
    assert costs("power_bert", {"retention_configuration": (4, 2)}) == {
        "none": [layer(5, 4) + layer(4, 2) + HEAD, layer(3, 3) + layer(3, 2) + HEAD],
        "batch": [layer(5, 4) + layer(4, 2) + HEAD] * 2,
        "sequence": [layer(8, 4) + layer(4, 2) + HEAD] * 2,
    }
    before_the_search = costs("power_bert", {})
    assert before_the_search["sequence"] == [2 * layer(8, 8) + HEAD] * 2


def test_transkimmer_never_computes_pads():
    """All but [CLS] skimmed at once: a padded input costs what the text costs."""

    def skim_all(reducer):
        for predictor in reducer.predictors:
            torch.nn.init.zeros_(predictor[-1].weight)
            predictor[-1].bias.data = torch.tensor([5.0, -5.0]).double()

    predictor = 32 * 32 + 2 * 32
    texts = [2 * layer(1, 1) + (n + 1) * predictor + HEAD for n in (5, 3)]
    assert costs("transkimmer", {}, skim_all) == {"none": texts, "batch": texts, "sequence": texts}


@pytest.mark.parametrize("name", ["dense", "deebert", "pabee"])
def test_padded_cost_equals_that_of_a_text_as_long(name):
    """A method that computes pads pays for them as for tokens, in each text's own exit layer."""
    reducer = tiny_reducer(name)
    with torch.no_grad():
        trace = reducer(**make_batch((9, 4, 1, 7, 12))).trace
    padded = reducer.macs(trace, "sequence", 20)
    for row, exit_layer in enumerate(trace.exit_layers.tolist()):
        exits = 0 if name == "dense" else min(exit_layer + 1, 2)  # each costs what the head does
        head = 0 if trace.exited[row] else HEAD
        assert int(padded[row]) == (exit_layer + 1) * layer(20, 20) + exits * HEAD + head


COMPUTING_PADS = {
    "power_bert": {"retention_configuration": (6, 4, 2), "count_pad_queries": True, "max_length": 12},
    "lat": {"length_configuration": (8, 5, 3), "counts": "absolute", "count_pad_queries": True, "max_length": 12},
    "lot": {"router_context": "padded_mean"},
}


@pytest.mark.parametrize("name", COMPUTING_PADS)
@pytest.mark.parametrize("family", ["bert", "albert", "electra"])
@pytest.mark.parametrize("head", ["classification", "span_qa"])
def test_variants_that_compute_padding_are_charged_for_what_was_executed(name, family, head):
    """Their pads are embedded and read by the head, too; the setting "batch" of the same batch costs the same."""
    if head in methods.lookup(name).traits.unsupported:
        return
    reducer = methods.create(name, tiny_model(family, head), **COMPUTING_PADS[name]).eval()
    batch = batch_for(reducer)
    executed, trace = executed_macs(reducer, batch)
    assert int(reducer.macs(trace).sum()) == executed
    assert torch.equal(reducer.macs(trace, "batch", 12), reducer.macs(trace))
    with torch.no_grad(), reducer.mode("masked"):
        assert torch.equal(reducer.macs(reducer(**batch).trace), reducer.macs(trace))
    assert torch.equal(trace[1].entered, trace.entered[1:2]) and int(trace.entered[1]) == 12
