"""Cost by pure arithmetic: the same as the backbone's own count, and as integers typed here."""

from __future__ import annotations

import pytest
import torch
import transformers

from benchmarks.formulas import (
    ALBERT_BASE,
    BERT_BASE,
    BERT_LARGE,
    DISTILBERT,
    Sizes,
    attention_macs,
    bert_parameters,
    classifier_macs,
    dropping_macs,
    encoder_macs,
    feed_forward_macs,
    layer_macs,
    padding_factor,
    reduced_macs,
    smallest_lengths,
    solve,
)
from methods.backbone import Backbone
from tests.tiny import tiny_model

LENGTHS = (1, 11, 64, 128, 384, 512)
CONFIGURATIONS = {
    "bert-base": (BERT_BASE, transformers.BertConfig()),
    "bert-large": (
        BERT_LARGE,
        transformers.BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
    ),
    "distilbert": (DISTILBERT, transformers.DistilBertConfig()),
    "albert-base": (
        ALBERT_BASE,
        transformers.AlbertConfig(hidden_size=768, num_attention_heads=12, intermediate_size=3072),
    ),
}
PREFIX = {"bert": "Bert", "distilbert": "DistilBert", "albert": "Albert"}


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("head", ["SequenceClassification", "QuestionAnswering"])
def test_the_formula_is_the_backbones_own_count(name, head) -> None:
    """Every MAC of `Backbone.dense_macs`, encoder and head, on the encoders that the papers use."""
    sizes, config = CONFIGURATIONS[name]
    with torch.device("meta"):
        backbone = Backbone(getattr(transformers, f"{PREFIX[config.model_type]}For{head}")(config))
    for n in LENGTHS:
        own = 2 * sizes.width * n if head == "QuestionAnswering" else classifier_macs(sizes)
        assert int(backbone.dense_macs(torch.tensor([n]))) == encoder_macs(n, sizes) + own


@pytest.mark.parametrize("family", ["bert", "albert", "electra", "distilbert"])
def test_the_formula_on_odd_sizes(family) -> None:
    """A feed-forward that is not four times the width, narrow embeddings, three classes."""
    backbone = Backbone(tiny_model(family))
    narrow = 16 if family in ("albert", "electra") else 32
    sizes = Sizes(layers=3, width=32, inner=48, heads=4, embedding=narrow)
    lengths = torch.tensor([1, 7, 40])
    expected = [encoder_macs(n, sizes) + classifier_macs(sizes, 3) for n in lengths.tolist()]
    assert backbone.dense_macs(lengths).tolist() == expected


@pytest.mark.parametrize(
    ("length", "macs"),
    [
        (64, 5_511_315_456),
        (128, 11_173_625_856),
        (256, 22_951_231_488),
        (384, 35_332_816_896),
        (512, 48_318_382_080),
    ],
)
def test_bert_base_without_head(length, macs) -> None:
    """References of the PoWER-BERT and LAT notes, also as 12 (7,077,888 n + 1536 n^2)."""
    assert encoder_macs(length) == macs == 12 * (7_077_888 * length + 1536 * length**2)


def test_layer_of_tr_bert() -> None:
    """TR-BERT's shipped table: 1, 128 and 512 tokens."""
    assert [layer_macs(n) for n in (1, 128, 512)] == [7_079_424, 931_135_488, 4_026_531_840]


def test_dropping_between_attention_and_feed_forward() -> None:
    """PoWER-BERT's RTE configuration and LTP's hand check: attention at the length before, feed-forward after."""
    rte = (153, 125, 111, 105, 85, 80, 72, 48, 35, 27, 22, 5)
    assert dropping_macs(256, rte) == 6_968_443_392
    hand = (40, 36, 32, 28, 24, 20, 18, 16, 14, 12, 10, 8)
    assert dropping_macs(40, hand) == 1_914_341_376 and encoder_macs(40) == 3_426_877_440


def test_keeping_everything_costs_what_dense_costs() -> None:
    assert dropping_macs(100, [100] * 12) == reduced_macs([100] * 12, [100] * 12) == encoder_macs(100)
    assert attention_macs(10) + feed_forward_macs(10) == layer_macs(10)
    assert attention_macs(10, keys=4) == 4 * 768**2 * 10 + 2 * 768 * 10 * 4
    with pytest.raises(ValueError):
        reduced_macs([1, 1], [1])


def test_smallest_lengths() -> None:
    """LAT, table of the search's reach: rounded up, never below two."""
    assert smallest_lengths(128, 0.2, 12) == (103, 83, 67, 54, 44, 36, 29, 24, 20, 16, 13, 11)
    assert smallest_lengths(64, 0.2, 12) == (52, 42, 34, 28, 23, 19, 16, 13, 11, 9, 8, 7)
    assert smallest_lengths(384, 0.2, 6) == (308, 247, 198, 159, 128, 103)
    assert smallest_lengths(10, 0.2, 1) == (8,)  # 0.8 x 10 is 8, not a little more
    assert smallest_lengths(4, 0.9, 3) == (2, 2, 2)


def test_parameters_are_those_of_transformers() -> None:
    with torch.device("meta"):
        models = {
            sizes: transformers.BertModel(CONFIGURATIONS[name][1])
            for name, sizes in (("bert-base", BERT_BASE), ("bert-large", BERT_LARGE))
        }
    for sizes, model in models.items():
        assert bert_parameters(sizes) == sum(weights.numel() for weights in model.parameters())
    assert bert_parameters() == 109_482_240


def test_padding_factor_of_averages() -> None:
    assert padding_factor(128, 128) == 1
    assert padding_factor(64, 11) == pytest.approx(5.89, abs=0.01)


def test_solve_inverts_an_increasing_function() -> None:
    assert solve(lambda n: 2e-9 * encoder_macs(n), 2e-9 * encoder_macs(39.5), 1, 512) == pytest.approx(39.5)
    assert solve(lambda n: n, 5, 6, 7) is None
