"""What a method sees inside the encoder, and what it may answer.

Both run modes offer the same operations on a different layout, so a method is written once:

- masked: `(batch, seq_len)` leading dimensions, nothing removed, gradients reach the decisions;
- packed: `(total_tokens,)` leading dimension, removed tokens are gone.

Below, `*tokens` stands for these leading dimensions and `sequences` for the sequences present: the whole batch in
masked mode, those that have not exited in packed mode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from methods.attention import AttentionScores
from methods.backbone import Backbone
from methods.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A hook's answer; every field is optional and None changes nothing.

    Attributes:
        keep: (*tokens) bool, live tokens that go on; the others never come back. [CLS] stays unless `drop_first`.
        leap: (*tokens) bool, tokens that skip this layer only and are live again at the next one. Only before a layer.
        gate: (*tokens) float, 1 for kept (not leaping) tokens and 0 for others, carrying the gradient of the choice.
            Gates of `keep` multiply up over layers; a gate of `leap` holds for its layer. Masked mode only.
        scale: (*tokens) float, multiplies the hidden states here (soft extraction in training).
        states: (*tokens, hidden_size), hidden states to go on with instead of the present ones (read from a cache). Not
            between attention and feed-forward.
        leap_first: [CLS] leaps too, where `leap` says so: its state comes from elsewhere.
        drop_first: [CLS] goes too, where `keep` says so; only for heads that do not read it.
        summary: (sequences, hidden_size), one extra token that can be attended to in this layer; never a query.
        summary_bias: added to the attention logits of the summary token.
        segments: (*tokens) long, attention of this layer stays within equal values, which must be contiguous in the
            sequence. Only before a layer, and not together with a summary.
        exit: (sequences,) bool, sequences that stop after this layer with `logits` (sequences, num_labels).
        overhead_macs: (sequences,) long, what reaching this decision cost.
    """

    keep: Tensor | None = None
    leap: Tensor | None = None
    gate: Tensor | None = None
    scale: Tensor | None = None
    states: Tensor | None = None
    leap_first: bool = False
    drop_first: bool = False
    summary: Tensor | None = None
    summary_bias: float = 0.0
    segments: Tensor | None = None
    exit: Tensor | None = None
    logits: Tensor | None = None
    overhead_macs: Tensor | None = None

    def __post_init__(self) -> None:
        if self.summary is not None and self.segments is not None:
            raise ValueError("a layer has either a summary token or segments, not both")

    def select(self, rows: Tensor) -> Decision:
        """What is said of the packed tokens `rows` (total_tokens,) bool; `keep` has been carried out."""
        leap, segments = (None if x is None else x[rows] for x in (self.leap, self.segments))
        return replace(self, keep=None, leap=leap, segments=segments)

    def kept(self, first: Tensor) -> Tensor | None:
        """(*tokens) bool, tokens that go on as far as `keep` says; `first` marks [CLS]."""
        return self.keep if self.keep is None or self.drop_first else self.keep | first

    def stays(self, first: Tensor) -> Tensor | None:
        """(*tokens) bool, tokens that run this layer as far as `leap` says; `first` marks [CLS]."""
        if self.leap is None:
            return None
        return ~self.leap if self.leap_first else ~self.leap | first


@dataclass(kw_only=True)
class Inputs:
    """A checked batch, as the encoder takes it.

    Attributes:
        input_ids, attention_mask (bool), position_ids: (batch, seq_len); token_type_ids: the same or None.
        labels: (batch,) or None; for span heads (batch, 2) start and end positions; for token classification (batch,
            seq_len), negative where there is none.
        segments: (batch, seq_len) long, the text of a pair that each token belongs to (0 or 1); None unless a method
            tells them apart.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    token_type_ids: Tensor | None = None
    labels: Tensor | None = None
    segments: Tensor | None = None


@dataclass(kw_only=True)
class Extras:
    """What a decision asks for in the current layer alone."""

    summary: Tensor | None = None
    summary_bias: float = 0.0
    segments: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class StateOptions:
    """How a state treats its batch; a reducer's choice, the same in both modes.

    Attributes:
        training: the reducer is in train().
        forwards: a head over tokens reads the last state of dropped tokens; else zeros.
        run_padding: pads are computed as queries like any token (a published variant), never as keys.
        normalisation: of masked attention, see `methods.attention.NORMALISATIONS`.
        attention_dropout: replaces the backbone's own probability in training; None leaves it.
        noisy_scores: scores are read after attention dropout, as published code does; in training, decisions are then
            partly random.
        skipped_layers: layers that the whole batch passes by unchanged (LayerDrop).
        refine_removed: removed tokens are hidden as keys only and still computed as queries, so that nothing is saved:
            what published code does that masks instead of removing. Runs masked, and is charged as dense.
        all_vote: the rows of removed tokens and of pads count in the scores, as in such code. Runs masked.
    """

    training: bool = False
    forwards: bool = False
    run_padding: bool = False
    normalisation: str = "renormalised"
    attention_dropout: float | None = None
    noisy_scores: bool = False
    skipped_layers: frozenset[int] = frozenset()
    refine_removed: bool = False
    all_vote: bool = False

    @property
    def masked_only(self) -> bool:
        """Whether the variant computes what real removal would not, so that packed mode cannot run it."""
        return self.refine_removed or self.all_vote


class TokenState(ABC):
    """The tokens of a batch on their way through the encoder.

    Attributes:
        layer: index of the current layer, 0-based.
        hidden: (*tokens, hidden_size), the state at the present hook.
        live: (*tokens) bool, still computed (packed: all True).
        real: (*tokens) bool, not padding.
        first: (*tokens) bool, the [CLS] token of each sequence.
        positions: (*tokens) long, index in the input row.
        input_ids: (*tokens) long.
        lengths: (sequences,) long, real tokens of the input.
        sequences: (sequences,) long, index of each sequence present in the batch.
        gate: (*tokens) float, product of all `keep` gates so far, or None.
        scores: attention received in the latest attention, or None where no method asked for it.
        notes: a method's own record of this forward pass (off-ramp logits, gates), for its losses.
        inputs: the batch that came in, the same at every hook; `at` reads its tables.
        trace: what was computed so far.
    """

    mode: str
    layer: int = -1
    hidden: Tensor
    live: Tensor
    real: Tensor
    first: Tensor
    positions: Tensor
    input_ids: Tensor
    lengths: Tensor
    sequences: Tensor
    gate: Tensor | None = None
    scores: AttentionScores | None = None

    def __init__(self, inputs: Inputs, trace: Trace, options: StateOptions) -> None:
        self.inputs, self.trace = inputs, trace
        if options.run_padding and not options.refine_removed:  # which is charged as dense, without padding
            trace.entered = torch.full_like(trace.input_lengths, trace.padded_length)
        self.training = options.training
        self._options = options
        self.notes: dict[str, list[Any]] = defaultdict(list)
        self.extras = Extras()

    # What hooks may ask

    @abstractmethod
    def counts(self) -> Tensor:
        """Live tokens of each sequence; (sequences,) long."""

    @abstractmethod
    def rank(self, values: Tensor) -> Tensor:
        """Rank (*tokens) of each live token's value in its sequence: 0 = largest, ties to the earlier token."""

    @abstractmethod
    def sum(self, values: Tensor) -> Tensor:
        """Sum over the live tokens of each sequence; (*tokens, ...) -> (sequences, ...)."""

    @abstractmethod
    def expand(self, values: Tensor) -> Tensor:
        """One value per sequence to one per token; (sequences, ...) -> (*tokens, ...), or what broadcasts to it."""

    @abstractmethod
    def first_tokens(self) -> Tensor:
        """Hidden state of [CLS]; (sequences, hidden_size)."""

    @abstractmethod
    def mean(self, values: Tensor) -> Tensor:
        """Mean over the live tokens of each sequence, pads apart; (*tokens, size) -> (sequences, size)."""

    def read(self, backbone: Backbone) -> Tensor:
        """What a head over whole texts reads, behind the final norm; (sequences, hidden_size)."""
        if backbone.averages:
            return self.mean(backbone.finish(self.hidden))
        return backbone.finish(self.first_tokens())

    def places(self) -> Tensor:
        """Which real token of its text each token is, counted in the input; (*tokens) long. Pads count as the last."""
        return self.at(self.inputs.attention_mask.cumsum(dim=1))

    def at(self, table: Tensor) -> Tensor:
        """Entries of a (batch, seq_len, ...) table of the input that belong to the tokens; (*tokens, ...)."""
        return table[self.expand(self.sequences), self.positions]

    def _turning(self, backbone: Backbone) -> Tensor | None:
        """Positions (*tokens) that turn queries and keys; None where the backbone has them in its embeddings."""
        return self.at(self.inputs.position_ids) if backbone.is_rotary else None

    def _window(self, backbone: Backbone, layer: nn.Module) -> int | None:
        """How far the attention of `layer` sees, in real tokens of the input; None where no text is that long.

        Raises:
            ValueError: pads are to be computed as queries, and have no place within a window.
        """
        window = backbone.window(layer)
        if window is not None and self._options.run_padding:
            raise ValueError("padding cannot be computed like tokens where attention is local; choose another variant")
        if window is None or torch.compiler.is_exporting():  # a graph is for texts of any length
            return window
        return None if self.inputs.input_ids.shape[1] <= window + 1 else window

    def _dropout(self, backbone: Backbone, layer: nn.Module) -> float:
        own, replaced = backbone.attention_dropout(layer), self._options.attention_dropout
        return own if replaced is None or not self.training else replaced

    # What the encoder does

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Every sequence has exited."""

    @abstractmethod
    def begin_layer(self, index: int) -> None:
        """Enter layer `index`; what the last layer alone was told is forgotten."""

    @abstractmethod
    def apply(self, decision: Decision) -> None:
        """Carry out a hook's answer."""

    @abstractmethod
    def attend(self, backbone: Backbone, layer: nn.Module, *, scores: bool) -> None:
        """Run the attention block on `hidden`; `scores`: also note the attention received."""

    @abstractmethod
    def feed_forward(self, backbone: Backbone, layer: nn.Module) -> None:
        """Run the feed-forward block on `hidden` and finish the layer."""

    @abstractmethod
    def outputs(self, backbone: Backbone) -> Tensor:
        """Head logits in input order: (batch, num_labels), or, of a head over tokens, (batch, seq_len, num_labels) with
        the lowest value of the dtype on pads."""
