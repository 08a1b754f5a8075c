"""Masked mode: rectangular tensors, nothing removed, every decision differentiable. The mode of training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.attention import AttentionScores, MaskedKeys, masked_attention
from methods.backbone import Backbone, checkpointed
from methods.packing import masked_rank
from methods.state import Decision, Extras, Inputs, StateOptions, TokenState
from methods.trace import Trace


def straight_through(keep: Tensor, gate: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` where `keep`, else `old`, exactly; the gradient of `gate` is that of gate * new + (1 - gate) * old.

    Args:
        keep: (batch, seq_len) bool; gate: the same shape, float; new, old: (batch, seq_len, hidden_size).
    """
    slope = (gate - gate.detach()).to(new.dtype).unsqueeze(-1)  # a float32 gate must not promote half-precision states
    return torch.where(keep.unsqueeze(-1), new, old) + slope * (new - old)


class MaskedState(TokenState):
    """Tokens as (batch, seq_len); a removed token keeps its last state and is hidden as a key."""

    mode = "masked"

    def __init__(self, backbone: Backbone, inputs: Inputs, options: StateOptions) -> None:
        mask = inputs.attention_mask
        super().__init__(inputs, Trace(mask, backbone.num_layers), options)
        self.hidden = backbone.embed(inputs.input_ids, inputs.token_type_ids, inputs.position_ids)
        self.real = mask
        self.live = torch.ones_like(mask) if options.run_padding else mask
        self.positions = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        self.first = self.positions == 0
        self.input_ids = inputs.input_ids
        self.lengths = self.trace.input_lengths
        self.sequences = torch.arange(mask.shape[0], device=mask.device)
        self._active = torch.ones_like(self.sequences, dtype=torch.bool)  # not exited
        self._exit_logits: Tensor | None = None
        self._reduced = False  # some token has stopped or leaps: layers must spare it

    def counts(self) -> Tensor:
        return self.live.sum(dim=1)

    def rank(self, values: Tensor) -> Tensor:
        return masked_rank(values, self.live)

    def sum(self, values: Tensor) -> Tensor:
        live = self.live.view(*self.live.shape, *(1,) * (values.dim() - 2))
        return values.masked_fill(~live, 0).sum(dim=1)

    def expand(self, values: Tensor) -> Tensor:
        return values.unsqueeze(1)

    def first_tokens(self) -> Tensor:
        return self.hidden[:, 0]

    def mean(self, values: Tensor) -> Tensor:
        weights = (self.live & self.real).to(values.dtype)
        if self.gate is not None:  # the gradient of the choice, also for tokens that were dropped
            weights = weights + ((self.gate - self.gate.detach()) * self.real).to(values.dtype)
        return (values * weights.unsqueeze(-1)).sum(dim=1) / weights.sum(dim=1, keepdim=True)

    @property
    def finished(self) -> bool:
        return False  # nothing is removed, so nothing is saved by stopping early

    def begin_layer(self, index: int) -> None:
        self.layer = index
        self.extras = Extras()
        self._layer_input = self.hidden
        self._computed, self._layer_gate = self.live, self.gate
        self._leaping = False

    def apply(self, decision: Decision) -> None:
        if decision.overhead_macs is not None:
            self.trace.overhead_macs += decision.overhead_macs * self._ran()
        if decision.states is not None:
            self.hidden = self._layer_input = decision.states.to(self.hidden.dtype)
        if decision.scale is not None:
            scale = decision.scale.masked_fill(~self.live, 1.0)
            self.hidden = self.hidden * scale.unsqueeze(-1).to(self.hidden.dtype)
        kept = decision.kept(self.first)
        if kept is not None:
            if self._leaping and bool((self.live & ~kept).any()):
                raise ValueError("tokens cannot be dropped in a layer that others leap over")
            self.live = self.live & kept
            self._computed = self._computed & self.live
            self._reduced = True
        stays = decision.stays(self.first)
        if stays is not None:
            self._computed = self._computed & stays
            self._reduced = self._leaping = True
        if decision.gate is not None:
            gate = decision.gate.masked_fill(self.first, 1.0)
            self._layer_gate = gate if self._layer_gate is None else self._layer_gate * gate
            if decision.leap is None:
                self.gate = self._layer_gate
        elif self._layer_gate is not None and (decision.keep is not None or decision.leap is not None):
            self._layer_gate = self._layer_gate * self._computed
            if decision.leap is None:
                self.gate = self._layer_gate
        if decision.summary is not None or decision.segments is not None:
            self.extras = Extras(
                summary=decision.summary, summary_bias=decision.summary_bias, segments=decision.segments
            )
        if decision.exit is not None and decision.logits is not None:
            self._exit(decision.exit & self._active, decision.logits)

    def attend(self, backbone: Backbone, layer: nn.Module, *, scores: bool) -> None:
        query, key, value = backbone.query_key_value(layer, self.hidden, self._turning(backbone))
        keys = self._keys(self._window(backbone, layer))
        if self.extras.summary is not None:
            summary = self.extras.summary.unsqueeze(1)
            key = torch.cat((key, backbone.heads_of(layer, "key", summary)), dim=1)
            value = torch.cat((value, backbone.heads_of(layer, "value", summary)), dim=1)
            self.trace.overhead_macs += 2 * backbone.hidden_size**2 * self._ran()
        voters = None
        if scores:
            voters = torch.ones_like(self.live) if self._options.all_vote else self._computed
        settings: dict[str, Any] = {"voters": voters, "noisy_scores": self._options.noisy_scores}
        settings["dropout"] = self._dropout(backbone, layer)

        def attention(
            query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None
        ) -> tuple[Tensor, Tensor | None, Tensor | None]:
            return masked_attention(query, key, value, replace(keys, gate=gate), **settings)

        # The gate is an argument, as reentrant checkpoints follow no gradient through what a block closes over.
        context, received, diagonal = checkpointed(layer, attention, query, key, value, keys.gate)
        self.hidden = backbone.finish_attention(layer, context, self.hidden)
        self.scores = (
            None
            if received is None or diagonal is None
            else AttentionScores(received[..., : self.real.shape[1]], diagonal)
        )
        ran = self._ran()
        tokens = self._charged().sum(dim=1)
        self.trace.record_attention(self.layer, self.sequences, tokens * ran, self._pairs(tokens) * ran)

    def feed_forward(self, backbone: Backbone, layer: nn.Module) -> None:
        new, old = backbone.feed_forward(layer, self.hidden), self._layer_input
        if self._options.refine_removed:
            pass  # a removed token goes on being refined
        elif self._layer_gate is not None:
            new = straight_through(self._computed, self._layer_gate, new, old)
        elif self._reduced:
            new = torch.where(self._computed.unsqueeze(-1), new, old)
        self.hidden = new
        if self._leaping:  # as in packed mode: the scores of this layer say nothing of the tokens that are back
            self.scores, self._leaping = None, False
        computed = self._charged() & self._active.unsqueeze(1)
        self.trace.record_ffn(self.layer, self.sequences, computed.sum(dim=1), computed)

    def outputs(self, backbone: Backbone) -> Tensor:
        if backbone.reads_tokens:
            hidden = self.hidden if self._options.forwards else self._without_dropped()
            logits = backbone.read_tokens(hidden)
            return logits.masked_fill(~self.real.unsqueeze(-1), torch.finfo(logits.dtype).min)
        logits = backbone.classify(self.read(backbone))
        if self._exit_logits is None:
            return logits
        return torch.where(self._active.unsqueeze(1), logits, self._exit_logits)

    def _without_dropped(self) -> Tensor:
        """Last states, zeros in the place of dropped tokens, with the gradient of the choice."""
        if self.gate is None:
            return self.hidden.masked_fill(~self.live.unsqueeze(-1), 0.0)
        return straight_through(self.live, self.gate, self.hidden, torch.zeros_like(self.hidden))

    def _ran(self) -> Tensor:
        return self._active.long()

    def _charged(self) -> Tensor:
        """(batch, seq_len) bool, tokens that this layer computes."""
        return self.real if self._options.refine_removed else self._computed

    def _keys(self, window: int | None) -> MaskedKeys:
        """Keys of the present layer, a summary token last."""
        allowed, visible, gate = self._computed & self.real, self.real, self._layer_gate
        gate = None if gate is None else gate * self.real
        pairs, bias = self._same_segment(), None
        if window is not None:
            places = self.places()
            near = (places.unsqueeze(2) - places.unsqueeze(1)).abs() <= window
            pairs = near if pairs is None else pairs & near
        if self.extras.summary is not None:
            allowed, visible = (F.pad(mask, (0, 1), value=True) for mask in (allowed, visible))
            gate = None if gate is None else F.pad(gate, (0, 1), value=1.0)
            if self.extras.summary_bias:
                bias = F.pad(self.hidden.new_zeros(self.real.shape), (0, 1), value=self.extras.summary_bias)
        return MaskedKeys(
            allowed=allowed,
            visible=visible,
            gate=gate,
            bias=bias,
            pairs=pairs,
            normalisation=self._options.normalisation,
        )

    def _same_segment(self) -> Tensor | None:
        """(batch, queries, keys) bool, both in one segment; None where the layer has none."""
        segments = self.extras.segments
        return None if segments is None else segments.unsqueeze(2) == segments.unsqueeze(1)

    def _pairs(self, tokens: Tensor) -> Tensor:
        """Query-key products that real removal would compute; (batch,) long."""
        same = self._same_segment()
        if same is None:
            return tokens * (tokens + int(self.extras.summary is not None))
        computed = self._charged()
        both = computed.unsqueeze(2) & computed.unsqueeze(1)
        return (same & both).sum(dim=(1, 2))

    def _exit(self, leaving: Tensor, logits: Tensor) -> None:
        if self._exit_logits is None:
            self._exit_logits = torch.zeros_like(logits)
        self._exit_logits = torch.where(leaving.unsqueeze(1), logits, self._exit_logits)
        self.trace.record_exit(self.layer, leaving.nonzero().squeeze(1))
        self._active = self._active & ~leaving
