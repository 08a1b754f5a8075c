"""Text pairs: where the second text of each input begins, and its positions counted anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from methods.state import Inputs


def separator_of(config: Any, chosen: int | None) -> int | None:
    """Token id that closes a text: the `chosen` one, or what a model's configuration says, or None if it is silent."""
    known = (chosen, getattr(config, "sep_token_id", None), getattr(config, "eos_token_id", None))
    return next((token for token in known if token is not None), None)


def second_starts(inputs: Inputs, separator: int | None) -> Tensor:
    """Column at which the second text of each pair begins; (batch,) long, seq_len where a text stands alone.

    A text's own token types decide if any of them is 1 (the second text of `[CLS] a [SEP] b [SEP]`); else the second
    text is what follows the first separator (`</s> b </s>` of RoBERTa's `<s> a </s></s> b </s>`).

    Args:
        separator: token id that closes a text, or None if unknown.
    Raises:
        ValueError: token types that are not 0 for the first text and 1 for all of a second one behind it; a graph in
            the making has no such check.
    """
    mask, types = inputs.attention_mask, inputs.token_type_ids
    width = mask.shape[1]
    columns = torch.arange(width, device=mask.device)

    def first(where: Tensor) -> Tensor:
        return torch.where(where, columns, width).amin(dim=1)

    starts = torch.full_like(mask[:, 0], width, dtype=torch.long)
    if separator is not None:
        closed = first(mask & (inputs.input_ids == separator))
        starts = first(mask & (columns > closed.unsqueeze(1)))
    if types is None:
        return starts
    second = mask & (types == 1)
    typed = first(second)
    misplaced = mask & (types != 0) & ~second | mask & ~second & (columns > typed.unsqueeze(1)) | second[:, :1]
    if not torch.compiler.is_exporting() and bool(misplaced.any()):
        row = int(misplaced.any(dim=1).nonzero()[0])
        raise ValueError(
            f"token_type_ids of row {row} must be 0 on the first text and 1 on the whole second text behind it"
        )
    return torch.where(typed < width, typed, starts)


def check_pairs(starts: Tensor, width: int, remedy: str) -> None:
    """Refuse texts that stand alone; `starts` from `second_starts` on inputs of `width` columns.

    Raises:
        ValueError: names the first such row, and what to do: `remedy`, among other things.
    """
    alone = starts == width
    if bool(alone.any()):
        raise ValueError(
            f"row {int(alone.nonzero()[0])} has no second text, and this method works on pairs; give token_type_ids "
            f"(1 on the second text), or separator_id where the model's configuration has none, or {remedy}"
        )


def as_pairs(inputs: Inputs, starts: Tensor, *, restart: bool) -> Inputs:
    """The same batch with its `segments`: 1 from where the second text starts on, padding behind it included.

    Args:
        starts: from `second_starts`.
        restart: positions of the second text begin again, as at the first token of the input.
    """
    width = inputs.input_ids.shape[1]
    segments = torch.arange(width, device=starts.device) >= starts.unsqueeze(1)
    positions = inputs.position_ids
    if restart:
        at_start = positions.gather(1, starts.clamp(max=width - 1).unsqueeze(1))
        positions = torch.where(segments & inputs.attention_mask, positions - at_start + positions[:, :1], positions)
    return replace(inputs, position_ids=positions, segments=segments.long())


def only(inputs: Inputs, rows: Tensor, tokens: Tensor) -> Inputs:
    """A batch of the chosen `tokens` (batch, seq_len) bool of some `rows` (n,) long alone, without holes."""
    chosen = tokens[rows]
    order = chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : int(chosen.sum(dim=1).max())]

    def take(table: Tensor) -> Tensor:
        return table[rows].gather(1, order)

    return Inputs(
        input_ids=take(inputs.input_ids),
        attention_mask=chosen.gather(1, order),
        position_ids=take(inputs.position_ids),
        token_type_ids=None if inputs.token_type_ids is None else take(inputs.token_type_ids),
    )
