"""Cost of an encoder as pure arithmetic: no tensors, no model, so that it can be imported in an instant.

The convention is that of `benchmarks.flops`: 1 MAC is one multiply-accumulate of a matrix product, FLOPs = 2 x MACs. On
the same sizes and lengths these functions give what `Backbone.dense_macs` gives. Lengths may be averages, so they and
the results are floats where they have to be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """An encoder in numbers; the defaults are BERT-base's."""

    layers: int = 12
    width: int = 768  # [d]
    inner: int = 3072  # of the feed-forward block
    heads: int = 12
    embedding: int = 768  # narrower embeddings are projected to `width`, token by token
    vocabulary: int = 30_522
    positions: int = 512
    types: int = 2  # of segments


BERT_BASE = Sizes()
BERT_LARGE = Sizes(layers=24, width=1024, inner=4096, heads=16, embedding=1024)
DISTILBERT = replace(BERT_BASE, layers=6)
ALBERT_BASE = replace(BERT_BASE, embedding=128)


def attention_macs(tokens: float, sizes: Sizes = BERT_BASE, *, keys: float | None = None) -> float:
    """MACs of one attention block: four projections of each token, then scores and context.

    Args:
        keys: tokens that each one attends to; all of them by default.
    """
    keys = tokens if keys is None else keys
    return 4 * sizes.width**2 * tokens + 2 * sizes.width * tokens * keys


def feed_forward_macs(tokens: float, sizes: Sizes = BERT_BASE) -> float:
    """MACs of one feed-forward block."""
    return 2 * sizes.width * sizes.inner * tokens


def layer_macs(tokens: float, sizes: Sizes = BERT_BASE) -> float:
    """MACs of one whole layer on `tokens` tokens."""
    return attention_macs(tokens, sizes) + feed_forward_macs(tokens, sizes)


def encoder_macs(tokens: float, sizes: Sizes = BERT_BASE) -> float:
    """MACs of all layers and of the embedding projection, without a head."""
    projection = sizes.embedding * sizes.width if sizes.embedding != sizes.width else 0
    return sizes.layers * layer_macs(tokens, sizes) + projection * tokens


def reduced_macs(attention: Sequence[float], feed_forward: Sequence[float], sizes: Sizes = BERT_BASE) -> float:
    """MACs of layers with `attention[i]` tokens in the attention and `feed_forward[i]` in the feed-forward of layer i.

    Raises:
        ValueError: the two have different lengths.
    """
    pairs = zip(attention, feed_forward, strict=True)
    return sum(attention_macs(before, sizes) + feed_forward_macs(after, sizes) for before, after in pairs)


def dropping_macs(length: float, lengths: Sequence[float], sizes: Sizes = BERT_BASE) -> float:
    """MACs where `lengths[i]` tokens leave the attention of layer i, which `length` tokens entered the first."""
    return reduced_macs([length, *lengths[:-1]], lengths, sizes)


def classifier_macs(sizes: Sizes = BERT_BASE, classes: int = 2) -> float:
    """MACs of pooler and classifier, which is also what an off-ramp costs."""
    return sizes.width * (sizes.width + classes)


def padding_factor(length: float, average: float, sizes: Sizes = BERT_BASE) -> float:
    """Dense MACs at the padded `length` over dense MACs at the `average` length: what unpadding alone gives."""
    return encoder_macs(length, sizes) / encoder_macs(average, sizes)


def layer_parameters(sizes: Sizes = BERT_BASE) -> int:
    """Weights, biases and two layer norms of one layer."""
    d, inner = sizes.width, sizes.inner
    return 4 * (d * d + d) + (d * inner + inner) + (inner * d + d) + 2 * 2 * d


def bert_parameters(sizes: Sizes = BERT_BASE) -> int:
    """Parameters of a BERT with pooler, without a task's classifier."""
    d = sizes.width
    embeddings = (sizes.vocabulary + sizes.positions + sizes.types + 2) * d  # the last 2: layer norm
    return embeddings + sizes.layers * layer_parameters(sizes) + d * d + d


def smallest_lengths(length: int, drop_ratio: float, layers: int, *, least: int = 2) -> tuple[int, ...]:
    """Lengths if each layer drops the share `drop_ratio`, rounded up, and never goes below `least`."""
    lengths = []
    for _ in range(layers):
        length = max(_ceil(length * (1 - drop_ratio)), least)
        lengths.append(length)
    return tuple(lengths)


def _ceil(value: float) -> int:
    """The least integer that is not below `value`, where 0.8 x 5 counts as 4 and not as a little more."""
    return -int(-(value - 1e-9) // 1)


def solve(function: Callable[[float], float], value: float, low: float, high: float) -> float | None:
    """The x in [low, high] at which an increasing `function` reaches `value`; None if it does not, by bisection."""
    if not function(low) <= value <= function(high):
        return None
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < value else (low, middle)
    return (low + high) / 2
