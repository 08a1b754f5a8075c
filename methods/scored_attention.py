"""Attention that also returns how much attention each token received, in blocks that stay in the cache."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CELLS = 2**18  # weights held at a time: 1 MB of float32, what a core's cache holds
CUDA_CELLS = 2**25


def attention_with_scores(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float, voters: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention in blocks of sequences, heads and query rows whose weights stay in the cache, and so few that memory
    grows with the length, not with its square.

    Args:
        query, key, value: (sequences, heads, tokens, head_size).
        bias: (sequences, 1, 1 or queries, keys), added to the logits; or None.
        voters: (sequences, queries) bool, rows that count in the scores; None: all.
    Returns:
        context like `query`; received and diagonal (sequences, queries), float32 at least.
    """
    (sequences, heads, queries, _), keys = query.shape, key.shape[2]
    cells = CUDA_CELLS if query.is_cuda else CELLS
    if sequences * heads * queries * keys <= cells:
        context, received, diagonal = _scored(query, key, value, bias, dropout, voters, queries, None)
        return context, received / heads, diagonal / heads
    rows = max(1, min(queries, cells // keys))
    heads_at_once = max(1, min(heads, cells // (rows * keys)))
    at_once = max(1, min(sequences, cells // (rows * keys * heads)))
    graph = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    held = None if graph else query.new_empty(at_once * heads_at_once * rows * keys)
    done = []
    for start in range(0, sequences, at_once):
        own = slice(start, start + at_once)
        given = [None if x is None else x[own] for x in (bias, voters)]
        inputs = zip(*(x[own].split(heads_at_once, dim=1) for x in (query, key, value)), strict=True)
        done.append(_joined([_scored(q, k, v, given[0], dropout, given[1], rows, held) for q, k, v in inputs]))
    context, received, diagonal = done[0] if len(done) == 1 else map(torch.cat, zip(*done, strict=True))
    return context, received / heads, diagonal / heads


_Scored = tuple[Tensor, Tensor, Tensor]


def _joined(heads: list[_Scored]) -> _Scored:
    """Outputs of some heads each, as one of all."""
    if len(heads) == 1:
        return heads[0]
    context, received, diagonal = zip(*heads, strict=True)
    return torch.cat(context, dim=1), torch.stack(received).sum(dim=0), torch.stack(diagonal).sum(dim=0)


def _scored(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    dropout: float,
    voters: Tensor | None,
    rows: int,
    held: Tensor | None,
) -> _Scored:
    """As `attention_with_scores`, `rows` query rows at a time; scores are sums over the heads.

    `held` has room for the logits of one block: without it each block's are allocated anew. None where a graph needs
    them.
    """
    sequences, heads, queries, size = query.shape
    exact = torch.promote_types(query.dtype, torch.float32)
    received = query.new_zeros(sequences, queries, dtype=exact)
    context, diagonal = [], []
    q, k, v = (x.reshape(sequences * heads, -1, size) for x in (query, key, value))
    k = k.transpose(1, 2)
    for start in range(0, queries, rows):
        some = q[:, start : start + rows]
        room = None if held is None else held[: some.shape[0] * some.shape[1] * k.shape[2]].view(*some.shape[:2], -1)
        weights = torch.baddbmm(some.new_empty(()), some, k, beta=0, alpha=size**-0.5, out=room)
        weights = weights.view(sequences, heads, -1, key.shape[2])
        if bias is not None:
            weights = weights + (bias if bias.shape[2] == 1 else bias[:, :, start : start + rows])
        weights = _softmax(weights, exact)
        votes = weights[..., :queries]
        if voters is not None:
            votes = votes * voters[:, None, start : start + rows, None]
        received = received + votes.sum(dim=(1, 2))
        diagonal.append(votes.diagonal(offset=start, dim1=2, dim2=3).sum(dim=1))
        dropped = F.dropout(weights, dropout) if dropout else weights
        context.append(torch.bmm(dropped.flatten(0, 1).to(v.dtype), v))
    whole = context[0] if len(context) == 1 else torch.cat(context, dim=1)
    return whole.view_as(query), received, torch.cat(diagonal, dim=1)


def _softmax(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Over the last dimension, in `dtype`; in place where nobody else needs the logits."""
    if logits.requires_grad or logits.dtype != dtype:
        return logits.softmax(dim=-1, dtype=dtype)
    return torch.softmax(logits, dim=-1, out=logits)
