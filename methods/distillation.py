"""What a student learns from a teacher: softened predictions and hidden states."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.packing import unpad


def softened_divergence(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    head: str,
    real: Tensor | None = None,
    *,
    multi_label: bool = False,
) -> Tensor:
    """tau^2 * KL(teacher || student) of predictions softened by the temperature tau, the mean over texts; scalar.

    Args:
        student, teacher: logits as a head of the kind `head` gives them. For spans it is the mean over start and end,
            and padding has no part; for a regression the squared difference, which no temperature changes.
        real: (batch, seq_len) bool, over which the mean of token classification is taken; only needed there.
        multi_label: labels may hold together, so that each has a distribution of its own; the mean is over them, too.
    """
    student, teacher = student.float(), teacher.float()
    if head == "regression":
        return F.mse_loss(student, teacher)
    if head == "span_qa":
        student, teacher = (logits.transpose(1, 2) for logits in (student, teacher))
    if multi_label:
        student, teacher = (torch.stack((logits, torch.zeros_like(logits)), dim=-1) for logits in (student, teacher))
    if head == "token_classification":
        assert real is not None
        student, teacher = unpad(student, real), unpad(teacher, real)
    lowest = torch.finfo(torch.float32).min / 4  # padding: its probability is 0, its logarithm still a number
    log_s, log_t = (F.log_softmax((logits / temperature).clamp(min=lowest), dim=-1) for logits in (student, teacher))
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(dim=-1).mean()


def state_distance(student: Tensor, teacher: Tensor, tokens: Tensor) -> Tensor:
    """Mean squared difference of states (batch, seq_len, hidden_size) over `tokens` (batch, seq_len) bool; scalar."""
    return F.mse_loss(unpad(student, tokens).float(), unpad(teacher, tokens).float())
