"""Attention for both modes: masked (rectangular, differentiable decisions) and packed (ragged, real removal).

Both can also return how much attention each token *received*: the column sums of the probabilities, which
attention-ranked methods use as importance scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# How the weights of kept keys add up, m being the keep mask over keys and s the scaled logits:
# - renormalised: m exp(s) / sum m exp(s). Equals real removal; the only one that does.
# - unnormalised: m softmax(s). Transkimmer's equation 4 and its main branch: the mass of removed keys is lost.
# - epsilon: (m exp(s) + 1e-6) / sum (m exp(s) + 1e-6), nothing subtracted from s. Transkimmer's evaluation branch.
NORMALISATIONS = ("renormalised", "unnormalised", "epsilon")
EPSILON = 1e-6
MAX_EXPONENT = 20.0  # a removed key may outscore every kept one; its weight only matters for the gradient of its gate


@dataclass(frozen=True)
class AttentionScores:
    """Attention received by each token, averaged over heads; dead tokens are neither counted nor voters.

    Attributes:
        received: (*tokens) float, sum over query rows of the probability given to this token; sums to the number of
            rows.
        diagonal: (*tokens) float, the part of `received` that the token gave to itself.
    """

    received: Tensor
    diagonal: Tensor

    def select(self, index: Tensor) -> AttentionScores:
        """The scores of some packed rows only."""
        return AttentionScores(self.received.index_select(0, index), self.diagonal.index_select(0, index))


@dataclass(frozen=True, kw_only=True)
class MaskedKeys:
    """Which keys a masked attention may see.

    Attributes:
        allowed: (batch, keys) bool, still computed.
        visible: (batch, keys) bool, real tokens, removed ones included; a superset of `allowed`.
        gate: (batch, keys) float, 0 or 1 like `allowed` but carrying gradients; 0 on pads; or None.
        bias: (batch, keys) float added to the logits, or None.
        pairs: (batch, queries, keys) bool, which query may see which key, own key included; or None, all.
        normalisation: one of `NORMALISATIONS`.
    """

    allowed: Tensor
    visible: Tensor
    gate: Tensor | None = None
    bias: Tensor | None = None
    pairs: Tensor | None = None
    normalisation: str = "renormalised"

    def mask(self) -> Tensor:
        """(batch, 1, 1 or queries, keys) bool, True = may attend."""
        return self._paired(self.allowed)

    def visible_mask(self) -> Tensor:
        """The same with removed keys, of the shape of `mask`."""
        return self._paired(self.visible)

    def _paired(self, keys: Tensor) -> Tensor:
        mask = keys[:, None, None, :]
        if self.pairs is not None:
            mask = mask & self.pairs.unsqueeze(1)
            mask = mask | ~mask.any(dim=-1, keepdim=True)  # a row that sees nothing: no NaN
        return mask


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: MaskedKeys,
    *,
    dropout: float = 0.0,
    voters: Tensor | None = None,
    noisy_scores: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Attention over rectangular tensors where some keys are removed.

    Args:
        query, key, value: (batch, tokens, heads, head_size); keys may be more than queries (summary tokens come last).
        keys: what may be seen.
        dropout: probability, applied to the weights.
        voters: (batch, queries) bool, rows that count in the scores; None = no scores wanted.
        noisy_scores: scores are read after dropout.
    Returns:
        context (batch, queries, heads, head_size); probabilities received per key and their diagonal (batch, queries),
        or None, None.
    """
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    if keys.gate is None and voters is None and keys.normalisation == "renormalised":
        mask = keys.mask()
        if keys.bias is not None:
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
            mask = mask + keys.bias[:, None, None, :].to(query.dtype)
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return context.transpose(1, 2), None, None
    weights = _masked_weights(query, key, keys)
    dropped = F.dropout(weights, dropout)
    received = diagonal = None
    if voters is not None:
        seen = dropped if noisy_scores else weights
        votes = (seen * voters[:, None, :, None]).mean(dim=1)[..., : query.shape[2]]
        received, diagonal = votes.sum(dim=1), votes.diagonal(dim1=1, dim2=2)
    context = dropped.to(value.dtype) @ value
    return context.transpose(1, 2), received, diagonal


def _masked_weights(query: Tensor, key: Tensor, keys: MaskedKeys) -> Tensor:
    """Attention probabilities (batch, heads, queries, keys), float32 at least; exactly 0 on removed keys."""
    logits = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if keys.bias is not None:
        logits = logits + keys.bias[:, None, None, :]
    mask = keys.mask()
    gate = mask.to(logits.dtype) if keys.gate is None else keys.gate[:, None, None, :]
    if keys.normalisation == "unnormalised":
        return logits.masked_fill(~keys.visible_mask(), -torch.inf).softmax(dim=-1) * gate
    if keys.normalisation == "epsilon":
        gate = gate if keys.pairs is None else gate * keys.pairs.unsqueeze(1)
        weights = logits.exp() * gate + EPSILON
        return weights / weights.sum(dim=-1, keepdim=True)
    if keys.gate is None:
        return logits.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    # Subtracting the largest *kept* logit keeps the sum away from 0 whatever the removed keys score.
    top = logits.detach().masked_fill(~mask, -torch.inf).amax(dim=-1, keepdim=True)
    weights = (logits - top).clamp(max=MAX_EXPONENT).exp() * gate
    if keys.pairs is not None:
        weights = weights * mask
    return weights / weights.sum(dim=-1, keepdim=True)


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_lengths: list[int],
    key_lengths: list[int],
    *,
    bias: Tensor | None = None,
    places: Tensor | None = None,
    window: int | None = None,
    dropout: float = 0.0,
    scores: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Attention of each sequence to itself; sequences of equal lengths run together, none sees padding.

    Args:
        query: (total_queries, heads, head_size); key, value: (total_keys, heads, head_size).
        query_lengths, key_lengths: tokens per sequence; both orders are the packed order.
        bias: (total_keys,) float added to the logits, or None.
        window: how far a query sees, in `places` (total_queries,) long of the input; None, everywhere.
        scores: also return the attention received; needs as many keys as queries, or the extra ones last.
    Returns:
        context (total_queries, heads, head_size); received and diagonal (total_queries,), or None, None.
    """
    context = torch.empty_like(query)
    received = query.new_zeros(query.shape[0]) if scores else None
    diagonal = query.new_zeros(query.shape[0]) if scores else None
    for rows, columns in _groups(query_lengths, key_lengths, query.device):
        q = query[rows].transpose(1, 2)  # (sequences, heads, queries, head_size)
        k, v = (x[columns].transpose(1, 2) for x in (key, value))
        added = None if bias is None else bias[columns][:, None, None, :].to(q.dtype)
        if window is not None:
            assert places is not None
            far = (places[rows].unsqueeze(2) - places[columns].unsqueeze(1)).abs() > window
            local = torch.zeros_like(far, dtype=q.dtype).masked_fill(far, -torch.inf).unsqueeze(1)
            added = local if added is None else added + local
        if received is None or diagonal is None:
            output = F.scaled_dot_product_attention(q, k, v, attn_mask=added, dropout_p=dropout)
        else:
            output, received[rows], diagonal[rows] = _attention_with_scores(q, k, v, added, dropout)
        context[rows] = output.transpose(1, 2)
    return context, received, diagonal


def _groups(query_lengths: list[int], key_lengths: list[int], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Rows and columns of sequences with equal lengths: (sequences, queries) and (sequences, keys) long."""
    members: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    row = column = 0
    for queries, keys in zip(query_lengths, key_lengths, strict=True):
        starts = members.setdefault((queries, keys), ([], []))
        starts[0].append(row)
        starts[1].append(column)
        row, column = row + queries, column + keys
    spans = []
    for (queries, keys), (rows, columns) in members.items():
        pairs = ((rows, queries), (columns, keys))
        first, second = (
            torch.tensor(starts, device=device).unsqueeze(1) + torch.arange(n, device=device) for starts, n in pairs
        )
        spans.append((first, second))
    return spans


def _attention_with_scores(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float, chunk: int = 64
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention in chunks of query rows, so that no (queries x keys) matrix of all rows is ever held.

    Args:
        query, key, value: (sequences, heads, tokens, head_size).
        bias: (sequences, 1, 1 or queries, keys), added to the logits.
    Returns:
        context like `query`; received and diagonal (sequences, queries).
    """
    sequences, heads, queries, _ = query.shape
    parts, received, diagonal = [], query.new_zeros(sequences, queries), []
    for start in range(0, queries, chunk):
        logits = (query[:, :, start : start + chunk] @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5
        if bias is not None:
            logits = logits + (bias if bias.shape[2] == 1 else bias[:, :, start : start + chunk])
        weights = logits.softmax(dim=-1)
        votes = weights[..., :queries].sum(dim=1) / heads  # (sequences, rows, queries)
        received = received + votes.sum(dim=1)
        diagonal.append(votes.diagonal(offset=start, dim1=1, dim2=2))
        parts.append(F.dropout(weights, dropout) @ value)
    return torch.cat(parts, dim=2), received, torch.cat(diagonal, dim=1)
