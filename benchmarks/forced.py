"""Forced schedules: a method decides as ever, then computes a given share of each text's tokens instead.

For timing without training. Predictors, scores, ranks and off-ramps run and are paid for; only which tokens (or texts)
their answer names is replaced, so that times say what a method costs at a given reduction. Logits mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from methods import ReducerOutput, TokenReducer
from methods.state import Decision, TokenState

HOOKS = ("before_layer", "after_attention", "after_layer")
STEPS = 40  # halvings of the interval in which a schedule is sought
Shares = tuple[float, ...]


@dataclass(frozen=True)
class Point:
    """Where a method decides what: found by watching it on one text.

    Attributes:
        what: "keep", "leap" or "exit". macs: of the decision, per token of the text, or per text for an exit.
    """

    layer: int
    hook: str
    what: str
    macs: float


def geometric(rate: float, layers: int) -> Shares:
    """Layer l, from 0 on, computes rate^(l + 1) of the tokens."""
    return tuple(max(rate ** (layer + 1), 1e-6) for layer in range(layers))


class Forced:
    """A reducer whose decisions follow `shares`, one per layer, whatever it thinks; give it batches by `run`.

    A token reducer computes ceil(share * length) tokens of each text at a layer where it decides, [CLS] always, and as
    many as before elsewhere; a method with exits lets that share of the texts pass each exit.

    Raises:
        ValueError: not one share in (0, 1] per layer.
    """

    def __init__(self, reducer: TokenReducer, shares: Sequence[float]) -> None:
        layers = reducer.backbone.num_layers
        if len(shares) != layers or not all(0 < share <= 1 for share in shares):
            raise ValueError(f"a schedule needs a share in (0, 1] for each of {layers} layers, got {tuple(shares)}")
        self.reducer, self.shares = reducer, tuple(shares)
        self.points: list[Point] = []
        self._keep: Tensor | None = None  # (layers, batch, seq_len) bool
        self._exit_layers: Tensor | None = None  # (batch,) long
        self._hooks = {name: getattr(reducer, name) for name in HOOKS}
        for name, hook in self._hooks.items():
            setattr(reducer, name, self._replacing(name, hook))
        reducer.follow_schedule(self.shares)

    def follow(self, shares: Sequence[float]) -> None:
        """Take another schedule."""
        self.shares = tuple(shares)
        self.reducer.follow_schedule(self.shares)

    def tables(self, mask: Tensor, places: Sequence[float]) -> tuple[Tensor, Tensor]:
        """What `run` needs of a batch: tokens that each layer may compute, and the layer after which each text exits.

        Args:
            mask: (batch, seq_len) bool, real tokens. places: of each text in the order of exits, in (0, 1).
        Returns:
            (layers, batch, seq_len) bool and (batch,) long.
        """
        generator = torch.Generator().manual_seed(0)
        order = torch.rand(mask.shape, generator=generator).to(mask.device)
        order = order.masked_fill(~mask, 2.0)
        order[:, 0] = -1.0
        rank = order.argsort(dim=1).argsort(dim=1)
        lengths = mask.sum(dim=1)
        shares = torch.tensor(self.shares, dtype=torch.float64, device=mask.device)
        wanted = (shares.unsqueeze(1) * lengths - 1e-4).ceil().clamp(min=1)
        passes = shares.cpu().unsqueeze(1) >= torch.tensor(places, dtype=torch.float64)  # (layers, batch)
        exits = passes.long().sum(dim=0).clamp(max=len(shares) - 1)
        return (rank < wanted.unsqueeze(2)) & mask, exits.to(mask.device)

    def run(self, batch: dict[str, Tensor], tables: tuple[Tensor, Tensor]) -> ReducerOutput:
        """A forward pass of the reducer that decides by `tables`."""
        self._keep, self._exit_layers = tables
        return self.reducer(**batch)

    def _replacing(self, name: str, hook: Callable[[TokenState], Decision | None]) -> Callable[..., Decision | None]:
        def answer(state: TokenState) -> Decision | None:
            decision = hook(state)
            return None if decision is None else self._replaced(name, state, decision)

        return answer

    def _replaced(self, name: str, state: TokenState, decision: Decision) -> Decision:
        changes: dict[str, Any] = {}
        if decision.keep is not None and self._keep is not None:
            changes["keep"] = state.at(self._keep[state.layer])
        if decision.leap is not None and self._keep is not None:
            changes["leap"] = ~state.at(self._keep[state.layer])
        if decision.exit is not None and self._exit_layers is not None:
            changes["exit"] = self._exit_layers[state.sequences] == state.layer
        if self._keep is None:
            self._note(name, state, decision)
        return replace(decision, **changes)

    def _note(self, name: str, state: TokenState, decision: Decision) -> None:
        macs = 0 if decision.overhead_macs is None else int(decision.overhead_macs[0])
        for what in ("keep", "leap", "exit"):
            if getattr(decision, what) is not None:
                self.points.append(Point(state.layer, name, what, macs if what == "exit" else macs / len(state.live)))
                macs = 0

    def watch(self, batch: dict[str, Tensor]) -> None:
        """Find out where the method decides, from one text of which it may drop nothing."""
        self._keep = self._exit_layers = None
        self.points = []
        hooks = {name: getattr(self.reducer, name) for name in HOOKS}
        for name, hook in hooks.items():
            setattr(self.reducer, name, _keeping_all(hook))
        try:
            self.reducer(**batch)
        finally:
            for name, hook in hooks.items():
                setattr(self.reducer, name, hook)

    def expected_macs(self, shares: Sequence[float], lengths: Tensor) -> float:
        """MACs of texts of `lengths` (texts,) under a schedule, as far as rounding to whole tokens allows."""
        backbone, lengths = self.reducer.backbone, lengths.double()
        at = {(point.layer, point.hook, point.what): point for point in self.points}
        live, present, total = 1.0, 1.0, float(backbone.head_macs(lengths.long()).sum())
        for layer, share in enumerate(shares):
            for what in ("keep", "leap"):
                if point := at.get((layer, "before_layer", what)):
                    total += present * point.macs * live * float(lengths.sum())
            if (layer, "before_layer", "keep") in at:
                live = min(live, share)
            attending = share if (layer, "before_layer", "leap") in at else live
            if (layer, "after_attention", "keep") in at:
                live = min(live, share)
            tokens = (lengths * attending).clamp(min=1)
            computed = (lengths * min(attending, live)).clamp(min=1)
            total += present * float(backbone.layer_macs(tokens, ffn=computed).sum())
            if point := at.get((layer, "after_layer", "exit")):
                total += present * point.macs * len(lengths)
                present = min(present, share)
        return total

    def schedule_for(self, speedup: float, lengths: Tensor) -> Shares:
        """The geometric schedule at which texts of `lengths` cost 1 / `speedup` of the dense MACs; nearest possible."""
        dense, layers = float(self.reducer.backbone.dense_macs(lengths).sum()), self.reducer.backbone.num_layers
        low, high = 0.0, 1.0
        for _ in range(STEPS):
            middle = (low + high) / 2
            if self.expected_macs(geometric(middle, layers), lengths) * speedup > dense:
                high = middle
            else:
                low = middle
        return geometric(low or high, layers)


def _keeping_all(hook: Callable[[TokenState], Decision | None]) -> Callable[[TokenState], Decision | None]:
    """The hook, its decision noted by whoever wraps it, but nothing dropped, leapt over or ended."""

    def answer(state: TokenState) -> Decision | None:
        decision = hook(state)
        return None if decision is None else replace(decision, keep=None, leap=None, exit=None)

    return answer
