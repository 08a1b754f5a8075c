"""REINFORCE over selections of tokens: replicas of a batch draw theirs, and better ones than their mates' get likelier.

Replicas lie one after the other: row j * batch + i is replica j of text i, and rewards are compared over rows that are
equal modulo the batch. The estimator is that of TR-BERT (see `methods/tr_bert.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from methods.backbone import Backbone
from methods.encoder import encode
from methods.packing import masked_rank
from methods.state import Decision, Inputs, StateOptions, TokenState

EPSILON = 1e-6  # inside logarithms of probabilities, as in the public code


def replicate(tensor: Tensor, replicas: int) -> Tensor:
    """(rows, ...) -> (replicas * rows, ...), whole copies one after the other."""
    return tensor.repeat(replicas, *(1,) * (tensor.dim() - 1))


def length_price(counts: list[Tensor], lengths: Tensor, padded_length: int, norm: str) -> Tensor:
    """What the selected tokens cost before alpha: the mean of l_t / N over the steps taken, or the sum of l_t.

    Args:
        counts: per step, (rows,) tokens selected [l_t].
        lengths: (rows,) long, real tokens; padded_length: N of the padded batch, or that of the published alpha.
        norm: "padded" (the public code), "valid" (N is a text's own length) or "count" (the paper's raw sum).
    Returns:
        (rows,) float.
    """
    selected = torch.stack(counts).float()
    if norm == "count":
        return selected.sum(dim=0)
    return selected.mean(dim=0) / (lengths if norm == "valid" else padded_length)


def advantages(rewards: Tensor, replicas: int, baseline: str = "mean") -> Tensor:
    """Reward minus the mean reward of a text's replicas; (replicas * batch,) -> the same shape, without gradient.

    "mean" counts the row itself, as published, which scales the expected gradient by (replicas - 1) / replicas;
    "leave_one_out" does not.
    """
    grouped = rewards.detach().view(replicas, -1)
    grouped = grouped - grouped[0]  # so that equal rewards give exactly 0
    centred = grouped - grouped.mean(dim=0)
    return (centred * (replicas / (replicas - 1) if baseline == "leave_one_out" else 1.0)).flatten()


def policy_loss(rewards: Tensor, surprise: Tensor, replicas: int, baseline: str = "mean") -> Tensor:
    """Scalar to be minimised; its gradient is the REINFORCE estimate, sign turned.

    Args:
        rewards, surprise: (replicas * batch,); `surprise` is minus the log probability of what a row drew.
    """
    return (advantages(rewards, replicas, baseline) * surprise).mean()


@dataclass(kw_only=True)
class Rollout:
    """Hooks of a pass in which replicas of a batch draw what they keep; afterwards it tells what they drew.

    All replicas share one pass over the layers before the first selection, dropout included.

    Attributes:
        layers: before which tokens are selected, 0-based, ascending.
        probability: (step, hidden, tokens) -> (*tokens) float, the policy's probability to select a token [pi].
        macs_per_token: of the policy.
        guide: (steps, batch, seq_len) scores of the tokens, or None. With it, replica 0 takes the best as many tokens
            as its policy expects to take.
        logprob_reduce: over the live tokens of a step, "token_mean" or "sum".
        double_fillers: restore stopped tokens as the public code does in training, see `_fill`; masked mode only.
        counts: per step taken, (rows,) long, tokens selected, [CLS] among them.
        surprises: per step taken, (rows,) float, minus the log probability of the actions under the policy; the
            forced one of [CLS] is one of them.
    """

    backbone: Backbone
    layers: tuple[int, ...]
    probability: Callable[[int, Tensor, Tensor], Tensor]
    replicas: int
    macs_per_token: int = 0
    guide: Tensor | None = None
    logprob_reduce: str = "token_mean"
    double_fillers: bool = False
    counts: list[Tensor] = field(default_factory=list)
    surprises: list[Tensor] = field(default_factory=list)

    def run(self, inputs: Inputs, mode: str, options: StateOptions) -> TokenState:
        """Run the batch once up to the first selection and its replicas from there; `counts` and `surprises` then hold.

        Returns:
            The final state of the replicas, (replicas * batch) sequences.
        """
        options = replace(options, refine_removed=self.double_fillers)
        before, after = range(self.layers[0]), range(self.layers[0], self.backbone.num_layers)
        shared = encode(self, inputs, mode, replace(options, skipped_layers=frozenset(after)))
        self._batch = len(inputs.input_ids)
        self._start = replicate(shared.hidden, self.replicas)
        rows = _replicate_inputs(inputs, self.replicas)
        state = encode(self, rows, mode, replace(options, skipped_layers=frozenset(before)))
        if self.double_fillers:
            removed = (state.real & ~state.live).unsqueeze(-1)
            twice = removed & self._columns.unsqueeze(-1)
            state.hidden = torch.where(removed, self._stopped, state.hidden) + state.hidden * twice
        return state

    @property
    def surprise(self) -> Tensor:
        """Sum over the steps; (rows,)."""
        return torch.stack(self.surprises).sum(dim=0)

    def before_layer(self, state: TokenState) -> Decision | None:
        """Draw the tokens that go on."""
        if state.layer not in self.layers:
            return None
        if not self.counts:
            hidden = self._enter(state)
        elif bool((state.counts() > 1).any()):
            hidden = state.hidden
        else:
            return None  # only [CLS] is left everywhere: the step is not taken
        step = self.layers.index(state.layer)
        probability = self.probability(step, hidden, state.live)
        keep = (self.draw(state, step, probability.detach()) | state.first) & state.live
        surprise = state.sum(-torch.log(torch.where(keep, probability, 1 - probability) + EPSILON))
        self.surprises.append(surprise / state.counts() if self.logprob_reduce == "token_mean" else surprise)
        self.counts.append(state.sum(keep.long()))
        if self.double_fillers:
            self._fill(state, hidden, keep)
        elif self.backbone.reads_tokens:  # as published, nothing is learned through states of stopped tokens
            hidden = torch.where(keep.unsqueeze(-1), hidden, hidden.detach())
        return Decision(states=hidden, keep=keep, overhead_macs=state.counts() * self.macs_per_token)

    def draw(self, state: TokenState, step: int, probability: Tensor) -> Tensor:
        """(*tokens) bool: a coin per token, or, in a guided row, the tokens of the highest scores."""
        drawn = torch.bernoulli(probability).bool()
        if self.guide is None:
            return drawn
        text = state.expand(state.sequences % self._batch)
        wanted = state.expand(state.sum(probability).round())
        best = state.rank(self.guide[step][text, state.positions]) < wanted
        return torch.where(state.expand(state.sequences < self._batch), best, drawn)

    def after_attention(self, state: TokenState) -> None:
        """Nothing to decide."""

    def after_layer(self, state: TokenState) -> None:
        """Nothing to decide."""

    def needs_scores(self, layer: int) -> bool:
        return False

    def _enter(self, state: TokenState) -> Tensor:
        """States at the first selection, (*tokens, hidden_size); the layers before it are noted as run."""
        tokens, trace = state.counts(), state.trace
        for layer in range(state.layer):
            trace.record_attention(layer, state.sequences, tokens, tokens**2)
            trace.record_ffn(layer, state.sequences, tokens, trace.attention_mask)
        self._columns = torch.ones_like(trace.attention_mask)
        self._stopped = self._start
        return self._start

    def _fill(self, state: TokenState, hidden: Tensor, keep: Tensor) -> None:
        """Fill rows that selected fewer tokens than the longest with stopped ones, the earliest; hidden as keys.

        The public code goes on computing them and adds what comes out to the state that they stopped with, so that a
        token of a span model is restored twice.
        """
        stops = (state.live & ~keep).unsqueeze(-1)
        self._stopped = torch.where(stops, hidden.detach(), self._stopped)
        counts, free = keep.sum(dim=1, keepdim=True), self._columns & ~keep
        self._columns = keep | (free & (masked_rank(-state.positions.float(), free) < counts.max() - counts))


def _replicate_inputs(inputs: Inputs, replicas: int) -> Inputs:
    values: dict[str, Any] = {
        name: None if value is None else replicate(value, replicas) for name, value in vars(inputs).items()
    }
    return Inputs(**values)
