"""What each kind of head learns from labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # a class id that is none, as in stock models


def task_loss(head: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Loss of each sequence (batch,); their mean is the stock model's loss, but for padding in spans.

    Cross-entropy, squared error, the mean over start and end, or the share of a sequence in the mean over all labelled
    tokens of the batch. Labels of -100, and positions behind the padded text, have no part in the mean, so that the
    others weigh more; where there are no others, the loss is 0. Spans are chosen among real tokens, while a stock
    model's softmax sees padding, too.

    Args:
        logits, labels: as `TokenReducer.forward` has them; for spans (batch, seq_len, 2) and (batch, 2).
    """
    if head == "span_qa":
        length = logits.shape[1]
        places = labels.clamp(0, length)
        losses = [
            _mean_over(
                F.cross_entropy(logits[..., i].float(), places[:, i], ignore_index=length, reduction="none"),
                places[:, i] < length,
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
    each = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="none")
    return _mean_over(each, labels != IGNORED)


def _mean_over(losses: Tensor, counted: Tensor) -> Tensor:
    """Losses (batch,), 0 where not `counted` (batch,), such that their mean is that of the counted ones."""
    return losses * (len(losses) / counted.sum().clamp(min=1))
