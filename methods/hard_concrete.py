"""Hard-concrete variables: bits that gradient descent can learn, each with one real parameter "loga".

Paper: Louizos et al., "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOW, HIGH = -0.1, 1.1  # a sample is stretched to these limits, then clipped to [0, 1]
TEMPERATURE = 2 / 3
EPSILON = 1e-6
BOUND = math.log(100)  # parameters stay within plus and minus this


def sample(loga: Tensor) -> Tensor:
    """One draw of each variable, in [0, 1] and often exactly 0 or 1; the gradient reaches `loga` in between."""
    noise = torch.rand_like(loga).clamp(EPSILON, 1 - EPSILON)
    soft = torch.sigmoid((noise.logit() + loga) / TEMPERATURE)
    return (LOW + (HIGH - LOW) * soft).clamp(0.0, 1.0)


def open_probability(loga: Tensor) -> Tensor:
    """Probability that a sample is above 0, kept within [1e-6, 1 - 1e-6]."""
    return torch.sigmoid(loga - TEMPERATURE * math.log(-LOW / HIGH)).clamp(EPSILON, 1 - EPSILON)


def open_bits(loga: Tensor) -> Tensor:
    """Decide: in each row, as many as are expected to be closed are, those with the lowest `loga`.

    Args:
        loga: (..., variables).
    Returns:
        The same shape, bool, True = open. Of equal ones the last are closed.
    """
    closed = (loga.shape[-1] - open_probability(loga).sum(dim=-1, keepdim=True)).round()
    later = torch.ones(loga.shape[-1], loga.shape[-1], dtype=torch.bool, device=loga.device).triu(1)
    own, others = loga.unsqueeze(-1), loga.unsqueeze(-2)
    from_lowest = ((others < own) | ((others == own) & later)).sum(dim=-1)  # no stable sort: graphs have none
    return from_lowest >= closed
