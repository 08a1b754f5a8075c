"""What each kind of head learns from labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def task_loss(head: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Loss of each sequence (batch,); their mean is the stock model's loss.

    Cross-entropy, squared error, the mean over start and end, or the share of a sequence in the mean over all labelled
    tokens of the batch.

    Args:
        logits, labels: as `TokenReducer.forward` has them; for spans (batch, seq_len, 2) and (batch, 2).
    """
    if head == "span_qa":
        length = logits.shape[1]
        losses = [
            F.cross_entropy(
                logits[..., i].float(), labels[:, i].clamp(0, length), ignore_index=length, reduction="none"
            )
            for i in (0, 1)
        ]
        return (losses[0] + losses[1]) / 2
    if head == "token_classification":
        each = F.cross_entropy(
            logits.float().flatten(0, 1), labels.clamp(min=-1).flatten(), ignore_index=-1, reduction="none"
        )
        return each.view(labels.shape).sum(dim=1) * len(labels) / (labels >= 0).sum().clamp(min=1)
    if head == "regression":
        return (logits.float().view(len(labels), -1) - labels.float().view(len(labels), -1)).square().mean(dim=1)
    if labels.is_floating_point():  # several labels at once
        return F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none").mean(dim=1)
    return F.cross_entropy(logits.float(), labels, reduction="none")
