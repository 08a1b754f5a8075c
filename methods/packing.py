"""Ragged batches: sequences of different lengths laid end to end, with no padding between them.

`cu_seqlens` (batch + 1,) int64 starts at 0; sequence b owns rows cu_seqlens[b] : cu_seqlens[b + 1] of a packed tensor
(total_tokens, ...).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

HALF = (torch.float16, torch.bfloat16)


def on_device(values: Sequence[int], device: torch.device) -> Tensor:
    """What the host knows, as a long tensor; a GPU is not waited for."""
    return _sent(torch.tensor(values, dtype=torch.long, device="cpu"), device)


def _sent(held: Tensor, device: torch.device) -> Tensor:
    return held.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else held.to(device)


class Lengths(list[int]):
    """Tokens of sequences that lie end to end, as the host knows them, and what their device needs of them, made once.

    Layers that drop nothing share it. Do not change the list.
    """

    def __init__(self, lengths: Iterable[int], device: torch.device) -> None:
        super().__init__(lengths)
        self.device = device

    @staticmethod
    def of(lengths: list[int], device: torch.device) -> Lengths:
        """`lengths` itself, if it is one."""
        return lengths if isinstance(lengths, Lengths) else Lengths(lengths, device)

    @functools.cached_property
    def bounds(self) -> Tensor:
        """`cu_seqlens` (batch + 1,) int32."""
        return _sent(torch.tensor([0, *accumulate(self)], dtype=torch.int32, device="cpu"), self.device)

    @functools.cached_property
    def rectangle(self) -> Rectangle:
        """The sequences side by side, padded to the longest."""
        counts = np.array(self, dtype=np.int64)
        ends = counts.cumsum()
        starts, grid = (ends - counts)[:, None], np.arange(counts.max())
        real = grid < counts[:, None]
        sources = np.where(real, starts + grid, starts)  # on a pad, the sequence's first token: its number is finite
        numbers = torch.from_numpy(np.concatenate([sources.ravel(), np.flatnonzero(real)]))
        sent, mask = _sent(numbers, self.device), _sent(torch.from_numpy(real), self.device)
        return Rectangle(mask, sent[: real.size], sent[real.size :])


@dataclass(frozen=True)
class Rectangle:
    """Where packed rows lie side by side.

    Attributes:
        mask: (batch, longest) bool, real tokens. sources: (batch * longest,) long, the packed row of each place; on
            pads, that of some token. places: (total_tokens,) long, the place of each packed row.
    """

    mask: Tensor
    sources: Tensor
    places: Tensor

    def lay(self, packed: Tensor) -> Tensor:
        """(total_tokens, ...) -> (batch, longest, ...); pads hold copies of tokens."""
        return packed.index_select(0, self.sources).unflatten(0, tuple(self.mask.shape))

    def take(self, laid: Tensor) -> Tensor:
        """The inverse of `lay`."""
        return laid.flatten(0, 1).index_select(0, self.places)


def cumulative(lengths: Tensor) -> Tensor:
    """`cu_seqlens` (batch + 1,) of `lengths` (batch,)."""
    return F.pad(lengths.cumsum(0), (1, 0))


def sequence_index(lengths: Tensor, total: int | None = None) -> Tensor:
    """Which sequence each packed row belongs to: (2, 3) -> (0, 0, 1, 1, 1).

    `total`, the sum of the lengths, saves a GPU from being waited for.
    """
    sequences = torch.arange(len(lengths), device=lengths.device)
    return torch.repeat_interleave(sequences, lengths, output_size=total)


def unpad(padded: Tensor, mask: Tensor) -> Tensor:
    """Rows of `padded` (batch, seq_len, ...) where `mask` (batch, seq_len) is True -> (total_tokens, ...)."""
    return padded.flatten(0, 1).index_select(0, mask.flatten().nonzero().squeeze(1))


def pad(packed: Tensor, mask: Tensor, value: float = 0.0) -> Tensor:
    """The inverse of `unpad`: rows go where `mask` (batch, seq_len) is True, `value` elsewhere."""
    padded = packed.new_full((mask.numel(), *packed.shape[1:]), value)
    padded = padded.index_copy(0, mask.flatten().nonzero().squeeze(1), packed)
    return padded.unflatten(0, tuple(mask.shape))


def segment_sum(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Sum packed `values` (total_tokens, ...) per sequence -> (count, ...); `index` from `sequence_index`.

    Half precision is added up in float32: bfloat16 cannot count beyond 256.
    """
    if values.dtype in HALF:
        return segment_sum(values.float(), index, count).to(values.dtype)
    return values.new_zeros(count, *values.shape[1:]).index_add(0, index, values)


def segment_rank(values: Tensor, lengths: Tensor, index: Tensor | None = None) -> Tensor:
    """Rank of each packed value inside its own sequence: 0 = largest, ties to the earlier row; (total_tokens,) long.

    `index`, what `sequence_index` gives, if it is known.
    """
    order = values.argsort(descending=True, stable=True)
    if len(lengths) == 1:
        return torch.empty_like(order).index_copy_(0, order, torch.arange(len(values), device=values.device))
    index = sequence_index(lengths, len(values)) if index is None else index
    order = order.index_select(0, index.index_select(0, order).argsort(stable=True))  # sequences again end to end
    places = torch.arange(len(values), device=values.device) - cumulative(lengths).index_select(0, index)
    return torch.empty_like(order).index_copy_(0, order, places)


def masked_rank(values: Tensor, mask: Tensor) -> Tensor:
    """Rank of each value among the True positions of its row: 0 = largest, ties to the earlier one.

    Args:
        values: (batch, seq_len) float.
        mask: (batch, seq_len) bool; positions outside rank behind all others.
    Returns:
        (batch, seq_len) long.
    """
    values = values.masked_fill(~mask, -torch.inf)
    if torch.compiler.is_exporting():  # graphs have no stable sort: count who stands before
        earlier = torch.ones(values.shape[1], values.shape[1], dtype=torch.bool, device=values.device).tril(-1)
        own, others = values.unsqueeze(2), values.unsqueeze(1)
        return ((others > own) | ((others == own) & earlier)).sum(dim=2)
    order = values.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(values.shape[1], device=values.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)
