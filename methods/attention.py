"""Attention for both modes: masked (rectangular, differentiable decisions) and packed (ragged, real removal).

Both can also return how much attention each token *received*: the column sums of the probabilities, which
attention-ranked methods use as importance scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.packing import HALF, Lengths, on_device
from methods.scored_attention import attention_with_scores

# How the weights of kept keys add up, m being the keep mask over keys and s the scaled logits:
# - renormalised: m exp(s) / sum m exp(s). Equals real removal; the only one that does.
# - unnormalised: m softmax(s). Transkimmer's equation 4 and its main branch: the mass of removed keys is lost.
# - epsilon: (m exp(s) + 1e-6) / sum (m exp(s) + 1e-6), nothing subtracted from s. Transkimmer's evaluation branch.
NORMALISATIONS = ("renormalised", "unnormalised", "epsilon")
EPSILON = 1e-6
SHORT = 16  # tokens up to which sequences of equal lengths are gathered, measured on a CPU
VARLEN_HEAD_SIZE = 256  # the largest, and only multiples of 8
VARLEN_CAPABILITY = (8, 0)  # the lowest, of a GPU
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
    fused = query.is_cuda or not dropout  # with dropout, torch's has no kernel on a CPU, and a slow softmax
    if fused and keys.gate is None and voters is None and keys.normalisation == "renormalised":
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
    """Attention of each sequence to itself; none sees padding.

    Sequences of equal lengths run together where they are neighbours, or short.

    Args:
        query: (total_queries, heads, head_size); key, value: (total_keys, heads, head_size).
        query_lengths, key_lengths: tokens per sequence; both orders are the packed order.
        bias: (total_keys,) float added to the logits, or None.
        window: how far a query sees, in `places` (total_queries,) long of the input; None, everywhere.
        scores: also return the attention received; needs as many keys as queries, or the extra ones last.
    Returns:
        context (total_queries, heads, head_size); received and diagonal (total_queries,), or None, None.
    """
    plain = bias is None and places is None and not dropout and not scores
    if query.is_cuda and plain and has_varlen(query):
        return _varlen_attention(query, key, value, query_lengths, key_lengths), None, None
    if query.is_cuda:  # one launch instead of one for each sequence
        return padded_attention(query, key, value, query_lengths, key_lengths, bias, dropout, scores, places, window)
    context = torch.empty_like(query)
    exact = torch.promote_types(query.dtype, torch.float32)
    received = query.new_zeros(query.shape[0], dtype=exact) if scores else None
    diagonal = query.new_zeros(query.shape[0], dtype=exact) if scores else None
    for rows, columns in _blocks(query_lengths, key_lengths):
        q = rows.of(query).transpose(1, 2)  # (sequences, heads, queries, head_size)
        k, v = (columns.of(x).transpose(1, 2) for x in (key, value))
        added = None if bias is None else columns.of(bias)[:, None, None, :].to(q.dtype)
        if places is not None and window is not None:
            local = _too_far(rows.of(places), columns.of(places), window, q.dtype)
            added = local if added is None else added + local
        if received is None or diagonal is None:
            output = F.scaled_dot_product_attention(q, k, v, attn_mask=added, dropout_p=dropout)
        else:
            output, block_received, block_diagonal = attention_with_scores(q, k, v, added, dropout)
            rows.put(block_received, received)
            rows.put(block_diagonal, diagonal)
        if len(output) * rows.length == len(query):
            context = output.transpose(1, 2).flatten(0, 1)  # all of them: no need to copy
        else:
            rows.put(output.transpose(1, 2), context)
    return context, received, diagonal


def has_varlen(query: Tensor) -> bool:
    """Whether torch's kernel for variable lengths takes `query` (total_queries, heads, head_size), on CUDA."""
    head_size = query.shape[-1]
    if query.dtype not in HALF or head_size % 8 or head_size > VARLEN_HEAD_SIZE:
        return False
    return torch.cuda.get_device_capability(query.device) >= VARLEN_CAPABILITY


def _varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, query_lengths: list[int], key_lengths: list[int]
) -> Tensor:
    """As `packed_attention` without scores, by torch's kernel for variable lengths (CUDA, half precision)."""
    from torch.nn.attention.varlen import varlen_attn

    queries, keys = (Lengths.of(lengths, query.device) for lengths in (query_lengths, key_lengths))
    context = varlen_attn(query, key, value, queries.bounds, keys.bounds, max(queries), max(keys))
    assert isinstance(context, Tensor)  # a pair only where more is asked for
    return context


def padded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_lengths: list[int],
    key_lengths: list[int],
    bias: Tensor | None,
    dropout: float,
    scores: bool,
    places: Tensor | None = None,
    window: int | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `packed_attention`, all sequences together, padded to the longest."""
    queries = Lengths.of(query_lengths, query.device).rectangle
    alike = key_lengths == query_lengths
    keys = queries if alike else Lengths.of(key_lengths, query.device).rectangle
    q = queries.lay(query).transpose(1, 2)
    k, v = (keys.lay(x).transpose(1, 2) for x in (key, value))
    added = torch.zeros_like(keys.mask, dtype=q.dtype).masked_fill(~keys.mask, -torch.inf)
    if bias is not None:
        added = added + keys.lay(bias.to(q.dtype))
    added = added[:, None, None, :]
    if places is not None and window is not None:
        laid = keys.lay(places)
        local = _too_far(laid, laid, window, q.dtype)
        added = added + local.masked_fill(~queries.mask[:, None, :, None], 0.0)  # rows of padding see all: no NaN
    if not scores:
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=added, dropout_p=dropout)
        return queries.take(output.transpose(1, 2)), None, None
    output, *votes = attention_with_scores(q, k, v, added, dropout, voters=queries.mask)
    received, diagonal = map(queries.take, votes)
    return queries.take(output.transpose(1, 2)), received, diagonal


@dataclass(frozen=True)
class _Rows:
    """Packed rows of sequences of `length` tokens that start at `starts`: neighbours as a view, others gathered."""

    starts: list[int]
    length: int

    def of(self, packed: Tensor) -> Tensor:
        """(total_tokens, ...) -> (sequences, length, ...)."""
        shape = (len(self.starts), self.length)
        if self._are_neighbours:
            return packed.narrow(0, self.starts[0], len(self.starts) * self.length).unflatten(0, shape)
        return packed.index_select(0, self._index(packed)).unflatten(0, shape)

    def put(self, values: Tensor, packed: Tensor) -> None:
        """Write (sequences, length, ...) to their rows of `packed`."""
        if self._are_neighbours:
            self.of(packed).copy_(values)
        else:
            packed.index_copy_(0, self._index(packed), values.flatten(0, 1))

    @property
    def _are_neighbours(self) -> bool:
        return self.starts[-1] - self.starts[0] == (len(self.starts) - 1) * self.length

    def _index(self, packed: Tensor) -> Tensor:
        starts = on_device(self.starts, packed.device)
        return (starts.unsqueeze(1) + torch.arange(self.length, device=packed.device)).flatten()


def _blocks(query_lengths: list[int], key_lengths: list[int]) -> list[tuple[_Rows, _Rows]]:
    """Rows and columns of the sequences that run together.

    Gathering short sequences from all over the batch costs less than a call for each of them, longer ones more.
    """
    blocks: list[tuple[_Rows, _Rows]] = []
    short: dict[tuple[int, int], tuple[_Rows, _Rows]] = {}
    row = column = 0
    previous: tuple[int, int] | None = None
    for lengths in zip(query_lengths, key_lengths, strict=True):
        queries, keys = lengths
        block = short.get(lengths) if queries <= SHORT else blocks[-1] if lengths == previous else None
        if block is None:
            block = (_Rows([], queries), _Rows([], keys))
            blocks.append(block)
            if queries <= SHORT:
                short[lengths] = block
        block[0].starts.append(row)
        block[1].starts.append(column)
        row, column, previous = row + queries, column + keys, lengths if queries > SHORT else None
    return blocks


def _too_far(queries: Tensor, keys: Tensor, window: int, dtype: torch.dtype) -> Tensor:
    """-inf where a query's and a key's place (sequences, tokens) are farther apart than `window`, else 0.

    Returns:
        (sequences, 1, queries, keys) of `dtype`.
    """
    far = (queries.unsqueeze(2) - keys.unsqueeze(1)).abs() > window
    return torch.zeros_like(far, dtype=dtype).masked_fill(far, -torch.inf).unsqueeze(1)
