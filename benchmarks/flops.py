"""Cost from traces. The convention, everywhere in this project:

1 MAC is one multiply-accumulate of a matrix product and FLOPs = 2 x MACs. Counted are the projections, attention
scores and contexts, feed-forward, embedding projection, predictors, routers, off-ramps and the head; softmax, norms,
activations, sorting and gathering are not, for any model. A method is charged for what it executes, the dense
baseline for all positions of the setting: "none" (each text at its own length), "batch" (the longest of its batch) or
"sequence" (the task's input length). Because padded settings let a method win by throwing pads away, each one carries
what unpadding alone gives.

Speed-ups are ratios of sums over texts; the mean of the texts' own ratios stands beside. Where a long text is read in
windows, its cost is that of all of them together; "batch" and "sequence" pad windows. Where a method's published
figures leave out work that somebody has to do, its `extra_costs` give that account too, beside the full one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from methods import PADDINGS, TokenReducer, Trace


def padded_lengths(trace: Trace, padding: str, sequence_length: int) -> Tensor:
    """Positions per text that a dense model computes under `padding`; (batch,) long."""
    lengths = trace.input_lengths
    if padding == "none":
        return lengths
    return torch.full_like(lengths, int(lengths.max()) if padding == "batch" else sequence_length)


@dataclass
class CostTotals:
    """Sums over the texts of an evaluation, grown batch by batch; `summary` is what a record holds."""

    sequence_length: int
    sequences: int = 0
    tokens: int = 0
    owners: list[int] = field(default_factory=list)  # text of each sequence
    macs: dict[str, list[Tensor]] = field(
        default_factory=lambda: {name: [] for name in PADDINGS}
    )  # (2 + accounts, batch): dense, method, other accounts of the method
    accounts: tuple[str, ...] = ()  # names of these, as in `TokenReducer.extra_costs`
    attention_tokens: Tensor | int = 0  # (layers,)
    ffn_tokens: Tensor | int = 0
    exits: Tensor | int = 0
    overhead: int = 0
    layer_macs: tuple[int, int] = (0, 0)  # of one token: attention projections, feed-forward

    def add(self, reducer: TokenReducer, trace: Trace, owners: Sequence[int] | None = None) -> None:
        """Account for one batch; `owners` has the text of each sequence, where not every sequence is a text."""
        count = len(trace.input_lengths)
        self.owners += owners if owners is not None else range(self.sequences, self.sequences + count)
        self.sequences += count
        self.tokens += int(trace.input_lengths.sum())
        for padding in PADDINGS:
            length = padded_lengths(trace, padding, self.sequence_length)
            extra = reducer.extra_costs(trace, length)
            self.accounts = tuple(extra)
            macs = (reducer.backbone.dense_macs(length), reducer.macs(trace, padding, length), *extra.values())
            self.macs[padding].append(torch.stack(macs).cpu())
        self.attention_tokens = self.attention_tokens + trace.attention_tokens.sum(dim=0).cpu()
        self.ffn_tokens = self.ffn_tokens + trace.ffn_tokens.sum(dim=0).cpu()
        self.overhead += int(trace.overhead_macs.sum())
        d = reducer.backbone.hidden_size
        matrices = reducer.backbone.spec.feed_forward_matrices
        self.layer_macs = (4 * d * d, matrices * d * reducer.backbone.intermediate_size)
        self.exits = self.exits + torch.bincount(trace.exit_layers, minlength=trace.num_layers).cpu()

    def summary(self) -> dict[str, Any]:
        """Plain data: MACs and speed-ups per padding, share of tokens computed and sequences that left per layer."""
        assert isinstance(self.attention_tokens, Tensor) and isinstance(self.ffn_tokens, Tensor)
        assert isinstance(self.exits, Tensor)
        _, owner = torch.unique(torch.tensor(self.owners), return_inverse=True)
        texts = int(owner.max()) + 1
        macs = {name: torch.cat(parts, dim=1) for name, parts in self.macs.items()}
        unpadded = int(macs["none"][0].sum())
        padding: dict[str, dict[str, Any]] = {}
        for name in PADDINGS:
            of_texts = torch.zeros(len(macs[name]), texts, dtype=torch.long).index_add(1, owner, macs[name])
            dense, method, *others = of_texts
            padding[name] = {
                "dense_gmacs_mean": int(dense.sum()) / texts / 1e9,
                **_speed(dense, method),
                "speedup_of_unpadding_alone": int(dense.sum()) / unpadded,
            }
            if others:
                accounts = zip(self.accounts, others, strict=True)
                padding[name]["extra"] = {account: _speed(dense, other) for account, other in accounts}
        attention, ffn = (tokens / self.tokens for tokens in (self.attention_tokens, self.ffn_tokens))
        return {
            "texts": texts,
            "sequences": self.sequences,
            "tokens_mean": self.tokens / texts,
            "padding": padding,
            "keep_ratio": float(ffn.mean()),
            "attention_share": [round(share, 6) for share in attention.tolist()],
            "ffn_share": [round(share, 6) for share in ffn.tolist()],
            "cost_share": [round(share, 6) for share in self._cost_share().tolist()],
            "exits": self.exits.tolist(),
        }

    def _cost_share(self) -> Tensor:
        """Share of tokens per layer that costs what was executed, if tokens drop before the layer at no overhead.

        Overhead is spread over the layers in proportion, as far as a layer can take it.
        """
        projections, feed_forward = self.layer_macs
        executed = self.attention_tokens * projections + self.ffn_tokens * feed_forward
        assert isinstance(executed, Tensor)
        share = executed / (self.tokens * (projections + feed_forward))
        return (share * (1 + self.overhead / float(executed.sum()))).clamp(max=1.0)


def _speed(dense: Tensor, method: Tensor) -> dict[str, float]:
    """Mean cost and speed-ups from the MACs (texts,) of the dense model and of a method."""
    return {
        "method_gmacs_mean": int(method.sum()) / len(method) / 1e9,
        "speedup": int(dense.sum()) / int(method.sum()),
        "speedup_mean_of_ratios": float((dense.double() / method.double()).mean()),
    }


def equal_cost_schedule(summary: dict[str, Any]) -> tuple[float, ...]:
    """Schedule at which random dropping costs what a method's own summary says, layer by layer."""
    return tuple(max(1e-3, round(share, 3)) for share in summary["cost_share"])
