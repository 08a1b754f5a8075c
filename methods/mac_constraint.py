"""ToP's count of what a share of tokens per layer costs, differentiable in the shares (section 2.7 of its notes)."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.backbone import Backbone


def layer_macs(backbone: Backbone, shares: Tensor, lengths: Tensor, *, drops_early: bool) -> Tensor:
    """MACs of the layers, the softmax counted as one per product of query and key and head, as in the paper.

    Args:
        shares: (layers,), of a text's tokens without [CLS] that enter each layer.
        lengths: (texts,).
        drops_early: the feed-forward of a layer runs on what the next one keeps.
    Returns:
        (texts,) float.
    """
    n = (lengths.unsqueeze(1) - 1) * shares + 1
    fed = torch.cat((n[:, 1:], n[:, -1:]), dim=1) if drops_early else n
    return (backbone.layer_macs(n, n * n, fed) + backbone.num_heads * n * n).sum(dim=1)


def sparsity(backbone: Backbone, shares: Tensor, lengths: Tensor, *, drops_early: bool) -> Tensor:
    """Share of the layers' MACs, without padding, that is saved on each text; (texts,)."""
    costs = [layer_macs(backbone, x, lengths, drops_early=drops_early) for x in (shares, torch.ones_like(shares))]
    return 1 - costs[0] / costs[1]
