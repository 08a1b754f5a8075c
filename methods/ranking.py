"""ARP2, a pairwise ranking loss that weighs a wrong order by how far apart the two belong.

Paper: Wang et al., "The LambdaLoss Framework for Ranking Metric Optimization", CIKM 2018 (average relevance position).
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from methods.packing import masked_rank


def arp2(scores: Tensor, target: Tensor, ranked: Tensor, top: int, *, pads: Tensor | None = None) -> Tensor:
    """How far the order of `scores` is from that of `target`, over the tokens that `target` puts first.

    Args:
        scores: (batch, tokens), of the student; the gradient goes here.
        target: (batch, tokens), of the teacher.
        ranked: (batch, tokens) bool, tokens that have a place in the order.
        top: tokens compared in each text [TOPK]; a shorter one compares all it has.
        pads: (batch, tokens) bool, tokens that stand in, all on the last place, where a text has fewer than `top`,
            as in ToP's released code.
    Returns:
        Scalar: the mean over texts of sum over pairs of (places apart) * log2(1 + exp(-(score difference))) / top^2.
    """
    place = masked_rank(target.detach(), ranked)
    grade = (ranked.sum(dim=1, keepdim=True) - place).clamp(min=0) * ranked  # the best has the number of tokens
    candidates = ranked if pads is None else ranked | pads
    count = candidates.sum(dim=1).clamp(max=top)
    order = grade.masked_fill(~candidates, -1)
    grade, index = order.topk(min(top, order.shape[1]), dim=1)
    score = scores.gather(1, index)
    apart = (grade.unsqueeze(2) - grade.unsqueeze(1)).clamp(min=0) * (grade >= 0).unsqueeze(1)
    cost = F.softplus(score.unsqueeze(1) - score.unsqueeze(2)) / math.log(2)
    return ((apart * cost).sum(dim=(1, 2)) / count.clamp(min=1).square()).mean()


def bins_of(rank: Tensor, survivors: Tensor, bins: int, binning: str) -> Tensor:
    """Bin of each 0-based `rank` (long) among as many `survivors` (long); long in [0, bins), `rank` permitting."""
    if binning == "integer":
        return rank * bins // survivors.clamp(min=1)
    share = rank.float() / (survivors.float() + 1e-6)
    return (share.clamp(0.0, 1.0) * bins).floor().long()
