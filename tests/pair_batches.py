"""Batches of text pairs for tests: texts end to end, or in two padded slots as DeFormer's released code has them."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.tiny import VOCABULARY

# (seed, tokens) of the first and of the second text; 1 and 3 share their second, 0 and 4 their first.
PAIRS = (((1, 4), (11, 5)), ((2, 3), (12, 8)), ((3, 6), (13, 2)), ((4, 2), (12, 8)), ((1, 4), (15, 7)))


def text(seed: int, length: int) -> list[int]:
    """Token ids without padding or separators."""
    return torch.randint(5, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def pair_batch(
    pairs=PAIRS, *, slots: tuple[int, int] | None = None, padded_to: int = 0, pad_id: int = 0
) -> dict[str, Tensor]:
    """input_ids, attention_mask and token_type_ids (batch, seq_len).

    Args:
        slots: pad the first text to so many tokens and the second likewise, so that padding stands between them.
        padded_to: least length of the rows.
    """
    rows = []
    for first, second in ((text(*one) for one in pair) for pair in pairs):
        between = [None] * (slots[0] - len(first) if slots else 0)
        behind = [None] * (slots[1] - len(second) if slots else 0)
        types = [0] * len(first + between) + [1] * len(second + behind)
        rows.append((first + between + second + behind, types))
    width = max(padded_to, *(len(ids) for ids, _ in rows))
    ids = [row + [None] * (width - len(row)) for row, _ in rows]
    return {
        "input_ids": torch.tensor([[pad_id if token is None else token for token in row] for row in ids]),
        "attention_mask": torch.tensor([[token is not None for token in row] for row in ids]).long(),
        "token_type_ids": torch.tensor([row + [0] * (width - len(row)) for _, row in rows]),
    }
