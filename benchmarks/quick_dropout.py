"""Dropout for training on a CPU, where drawing torch's masks takes a fifth to a third of a step.

Torch draws a number for each element; here one draw of 64 bits serves four. A probability is thereby rounded to a
multiple of 2**-16 (0.1 to 0.1000061), and what stays is scaled by exactly the share that stays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 2**16  # values of a lane
LANES = 4  # of 16 bits in an int64
_TORCHS = F.dropout


@contextlib.contextmanager
def quick_dropout() -> Iterator[None]:
    """In this block `torch.nn.functional.dropout`, and so every `nn.Dropout`, draws quickly on a CPU.

    The backward pass belongs in the block, too: with gradient checkpointing it draws again what was drawn before. For
    loops of one thread: the function is replaced for the whole process.
    """
    F.dropout = _dropout
    try:
        yield
    finally:
        F.dropout = _TORCHS


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    dropped = round(p * LEVELS)
    if input.is_cpu and training and not inplace and 0 < dropped < LEVELS:
        return input * factors(input.shape, dropped, input.dtype)
    return _TORCHS(input, p, training, inplace)


def factors(shape: Sequence[int], dropped: int, dtype: torch.dtype) -> Tensor:
    """What dropout multiplies by: 0 with probability `dropped` / 2**16, else the inverse of the other probability."""
    count = torch.Size(shape).numel()
    draws = torch.empty(-(-count // LANES), dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.int16)[:count].view(shape) >= dropped - LEVELS // 2
    return kept.to(dtype).mul_(LEVELS / (LEVELS - dropped))
