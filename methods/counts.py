"""What the methods share that keep a given number of tokens per layer: those that receive most attention."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from methods.state import TokenState


def check_counts(name: str, counts: Sequence[int] | None, *, least: int = 1) -> None:
    """Check the option `name`: tokens kept per layer, or None.

    Raises:
        ValueError: no counts, one below `least`, or one above that of the layer before.
    """
    if counts is not None and (not counts or min(counts) < least or any(a < b for a, b in pairwise(counts))):
        raise ValueError(f"{name} must be non-increasing counts of at least {least}, got {counts}")


def check_layers(name: str, counts: Sequence[int] | None, layers: int) -> None:
    """Check that the option `name` has a count for each of `layers`, or is None.

    Raises:
        ValueError: it has more or fewer.
    """
    if counts is not None and len(counts) != layers:
        raise ValueError(f"{name} has {len(counts)} counts for {layers} layers")


def most_attended(state: TokenState, scores: Tensor, count: int | Tensor, *, protect_first: bool = True) -> Tensor:
    """Choose the live tokens with the highest scores, ties to the earlier one.

    Args:
        scores: (*tokens) float.
        count: tokens to keep in each sequence, or (*tokens) or what broadcasts to it, see `TokenState.expand`.
        protect_first: [CLS] is one of them whatever its score.
    Returns:
        (*tokens) bool; all live tokens of a sequence that has no more than `count`.
    """
    return state.rank(scores.masked_fill(state.first, torch.inf) if protect_first else scores) < count


def counted_tokens(counts: Sequence[int], length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What is computed where every text has `length` (sequences,) tokens, pads included, and counts are absolute.

    Attention of a layer runs on the tokens that the layer before kept, its feed-forward on those that it keeps itself.

    Returns:
        attention tokens, attention pairs and feed-forward tokens, each (sequences, layers) long.
    """
    ffn = torch.minimum(torch.tensor(counts, device=length.device), length.unsqueeze(1))
    attention = torch.cat((length.unsqueeze(1), ffn[:, :-1]), dim=1)
    return attention, attention**2, ffn
