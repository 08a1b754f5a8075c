"""Packed mode: removed tokens, padding and exited sequences are really gone. The mode of inference."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from methods.attention import AttentionScores, packed_attention
from methods.backbone import Backbone
from methods.packing import HALF, Lengths, cumulative, on_device, pad, segment_rank, segment_sum, sequence_index
from methods.state import Decision, Extras, Inputs, StateOptions, TokenState
from methods.trace import Trace


@dataclass(frozen=True)
class _Leaping:
    """The tokens of a layer before some leapt over it; `index`: the rows (rows,) that did not."""

    index: Tensor
    hidden: Tensor
    entry: Tensor
    counts: Tensor
    lengths: list[int]
    sequence_index: Tensor


def _copied(into: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """`into` with `rows` at `index` (rows,), in the wider of their types.

    Autocast gives projections another type than norms, and on CUDA does not bring the two together here.
    """
    if into.dtype != rows.dtype:
        wider = torch.promote_types(into.dtype, rows.dtype)
        into, rows = into.to(wider), rows.to(wider)
    return into.index_copy(0, index, rows)


class PackedState(TokenState):
    """Tokens as (total_tokens,), sequences end to end in input order; [CLS] is the first row of its sequence.

    A layer that removes something waits once for the device: for the new lengths, which the host knows from then on.
    """

    mode = "packed"

    def __init__(self, backbone: Backbone, inputs: Inputs, options: StateOptions) -> None:
        mask = inputs.attention_mask
        if options.masked_only:
            raise ValueError("the chosen options only mask tokens, as published code does; run them in masked mode")
        super().__init__(inputs, Trace(mask, backbone.num_layers), options)
        rows = torch.ones_like(mask) if options.run_padding else mask
        self._rows = rows  # (batch, seq_len) bool: positions that entered
        flat = rows.flatten().nonzero().squeeze(1)  # position b * seq_len + i of each row
        input_ids = inputs.input_ids.flatten().index_select(0, flat)
        types = inputs.token_type_ids
        self.hidden = backbone.embed(
            input_ids.unsqueeze(0),
            None if types is None else types.flatten().index_select(0, flat).unsqueeze(0),
            inputs.position_ids.flatten().index_select(0, flat).unsqueeze(0),
        ).squeeze(0)
        positions = flat % mask.shape[1]
        self._entered = {
            "input_ids": input_ids,
            "positions": positions,
            "first": positions == 0,
            "real": mask.flatten().index_select(0, flat),
            "live": torch.ones_like(flat, dtype=torch.bool),
            "_flat": flat,
        }
        self.lengths = self.trace.input_lengths
        self.sequences = torch.arange(mask.shape[0], device=mask.device)  # input row of each sequence still here
        self._entry = torch.arange(len(flat), device=mask.device)  # row at entry of each row now
        counts = rows.sum(dim=1)
        self._set_counts(counts, counts.tolist())
        self._scores: AttentionScores | None = None
        self._scored: Tensor | None = None  # the rows (rows,) long of `_scores` that are left; None, all
        self._keep_states = options.forwards and backbone.reads_tokens
        self._stopped: Tensor | None = None  # (rows at entry, hidden_size): last states of tokens dropped so far
        self._logits: Tensor | None = None  # (batch, num_labels) of sequences that exited
        self._leaping: _Leaping | None = None

    def __getattr__(self, name: str) -> Tensor:
        """What is known of each token since it entered is looked up for the rows that are left, when first asked."""
        entered = self.__dict__.get("_entered", {})
        if name not in entered:
            raise AttributeError(f"{type(self).__name__} has no attribute '{name}'")
        value = entered[name].index_select(0, self._entry)
        self.__dict__[name] = value
        return value

    def counts(self) -> Tensor:
        return self._counts

    def rank(self, values: Tensor) -> Tensor:
        return segment_rank(values, self._counts, self._index)

    def sum(self, values: Tensor) -> Tensor:
        return segment_sum(values, self._index, len(self._lengths))

    def expand(self, values: Tensor) -> Tensor:
        return values.index_select(0, self._index)

    def first_tokens(self) -> Tensor:
        return self.hidden.index_select(0, cumulative(self._counts)[:-1])

    def mean(self, values: Tensor) -> Tensor:
        if values.dtype in HALF:  # too little for counts and sums of long texts
            return self.mean(values.float()).to(values.dtype)
        weights = self.real.to(values.dtype)
        return self.sum(values * weights.unsqueeze(-1)) / self.sum(weights).unsqueeze(-1)

    @property
    def scores(self) -> AttentionScores | None:
        """Of the rows that are left, looked up when first asked: most layers drop by them and never look again."""
        if self._scores is not None and self._scored is not None:
            self._scores, self._scored = self._scores.select(self._scored), None
        return self._scores

    @scores.setter
    def scores(self, scores: AttentionScores | None) -> None:
        self._scores, self._scored = scores, None

    @property
    def finished(self) -> bool:
        return len(self.sequences) == 0

    def begin_layer(self, index: int) -> None:
        self.layer = index
        self.extras = Extras()
        self._layer_input: Tensor | None = self.hidden  # None once nothing can need it

    def apply(self, decision: Decision) -> None:
        if decision.gate is not None and torch.is_grad_enabled() and decision.gate.requires_grad:
            raise ValueError("packed mode removes tokens and cannot carry a gate's gradient; train in masked mode")
        if decision.overhead_macs is not None:
            self.trace.overhead_macs.index_add_(0, self.sequences, decision.overhead_macs)
        if decision.states is not None:
            self.hidden = decision.states.to(self.hidden.dtype)
            self._layer_input = None if self._layer_input is None else self.hidden
        if decision.scale is not None:
            self.hidden = self.hidden * decision.scale.unsqueeze(-1).to(self.hidden.dtype)
        kept = decision.kept(self.first) if decision.keep is not None else None
        if kept is not None:
            if decision.leap is not None or decision.segments is not None:
                decision = decision.select(kept)
            self._drop(kept)
        run = decision.stays(self.first) if decision.leap is not None else None
        if run is not None:
            decision = decision.select(run)
            self._leap(run)
        if decision.summary is not None or decision.segments is not None:
            self.extras = Extras(
                summary=decision.summary, summary_bias=decision.summary_bias, segments=decision.segments
            )
        if decision.exit is not None and decision.logits is not None:
            self._exit(decision.exit, decision.logits)

    def attend(self, backbone: Backbone, layer: nn.Module, *, scores: bool) -> None:
        query, key, value = backbone.query_key_value(layer, self.hidden, self._turning(backbone))
        lengths: list[int] = self._lengths
        bias, window = self._padding_bias(), self._window(backbone, layer)
        if self.extras.segments is not None:
            lengths = self._segment_lengths(self.extras.segments)
        key_lengths: list[int] = lengths
        if self.extras.summary is not None:
            key, value, bias = self._append_summary(backbone, layer, key, value, bias)
            summary_macs = 2 * backbone.hidden_size**2
            self.trace.overhead_macs.index_add_(0, self.sequences, torch.full_like(self.sequences, summary_macs))
            key_lengths = [length + 1 for length in lengths]
        context, received, diagonal = packed_attention(
            query,
            key,
            value,
            lengths,
            key_lengths,
            bias=bias,
            places=None if window is None else self.places(),
            window=window,
            dropout=self._dropout(backbone, layer),
            scores=scores,
        )
        self.hidden = backbone.finish_attention(layer, context, self.hidden)
        if not self._keep_states:
            self._layer_input = None
        self.scores = None if received is None or diagonal is None else AttentionScores(received, diagonal)
        pairs = self._counts * (self._counts + int(self.extras.summary is not None))
        if self.extras.segments is not None:
            runs = on_device(lengths, self._counts.device)
            owner = self._index.index_select(0, cumulative(runs)[:-1])
            pairs = segment_sum(runs**2, owner, len(self._lengths))
        self.trace.record_attention(self.layer, self.sequences, self._counts, pairs)

    def feed_forward(self, backbone: Backbone, layer: nn.Module) -> None:
        self.hidden = backbone.feed_forward(layer, self.hidden)
        self.trace.record_ffn(self.layer, self.sequences, self._counts, self._flat)
        self._layer_input = None
        if self._leaping is not None:
            self._land()

    def outputs(self, backbone: Backbone) -> Tensor:
        if backbone.reads_tokens:
            return self._of_tokens(backbone)
        if self.finished and self._logits is not None:
            return self._logits
        logits = backbone.classify(self.read(backbone))
        if self._logits is None:
            return logits
        return self._logits.index_copy(0, self.sequences, logits.to(self._logits.dtype))

    def _set_counts(self, counts: Tensor, lengths: list[int], index: Tensor | None = None) -> None:
        """Take over new token counts per sequence (sequences,), on the device and on the host.

        Args:
            index: the sequence of each row (total_tokens,), if known.
        """
        self._counts, self._lengths = counts, Lengths.of(lengths, counts.device)
        self._index = sequence_index(counts, sum(lengths)) if index is None else index

    def _select(self, index: Tensor) -> None:
        """Keep the rows `index` (rows,) long of everything that has one entry per token."""
        hidden = self.hidden.index_select(0, index)
        if self._layer_input is not None:
            untouched = self._layer_input is self.hidden
            self._layer_input = hidden if untouched else self._layer_input.index_select(0, index)
        self.hidden = hidden
        self._enter(self._entry.index_select(0, index))
        if self._scores is not None:
            self._scored = index if self._scored is None else self._scored.index_select(0, index)

    def _enter(self, entry: Tensor) -> None:
        """Take over the rows at entry (rows,) of the present rows, and forget what was looked up for others."""
        self._entry = entry
        for name in self._entered:
            self.__dict__.pop(name, None)

    def _count(self, chosen: Tensor) -> Tensor:
        """How many of the rows `chosen` (rows,) bool are in each sequence; (sequences,) long."""
        if len(self._lengths) == 1:
            return chosen.sum(dim=0, keepdim=True)
        return segment_sum(chosen.long(), self._index, len(self._lengths))

    def _drop(self, keep: Tensor) -> None:
        counts = self._count(keep)
        lengths = counts.tolist()
        total = sum(lengths)
        if total == len(keep):
            return
        if self._leaping is not None:
            raise ValueError("tokens cannot be dropped in a layer that others leap over")
        index = torch.nonzero_static(keep, size=total).squeeze(1)
        if self._keep_states:
            # A token dropped between attention and feed-forward keeps the state it entered the layer with.
            gone = torch.nonzero_static(~keep, size=len(keep) - total).squeeze(1)
            if self._stopped is None:
                self._stopped = self.hidden.new_zeros(len(self._entered["_flat"]), self.hidden.shape[-1])
            last = self.hidden if self._layer_input is None else self._layer_input
            self._stopped = _copied(self._stopped, self._entry[gone], last[gone])
        self._select(index)
        self._set_counts(counts, lengths, self._index.index_select(0, index))

    def _leap(self, run: Tensor) -> None:
        """Set aside the tokens that do not `run` this layer."""
        assert self._layer_input is not None  # leaps are decided before the layer
        counts = self._count(run)
        lengths = counts.tolist()
        index = torch.nonzero_static(run, size=sum(lengths)).squeeze(1)
        self._leaping = _Leaping(index, self._layer_input, self._entry, self._counts, self._lengths, self._index)
        self.scores = None
        self._select(index)
        self._set_counts(counts, lengths, self._index.index_select(0, index))

    def _land(self) -> None:
        """Put the tokens that leapt over the layer back between the others, in input order."""
        assert self._leaping is not None
        before = self._leaping
        self.hidden = _copied(before.hidden, before.index, self.hidden)
        self.scores = self._leaping = None
        self._enter(before.entry)
        self._set_counts(before.counts, before.lengths, before.sequence_index)

    def _exit(self, leaving: Tensor, logits: Tensor) -> None:
        left = leaving.tolist()
        if not any(left):
            return
        gone, stay = (
            on_device([place for place, leaves in enumerate(left) if leaves == which], leaving.device)
            for which in (True, False)
        )
        if self._logits is None:
            self._logits = logits.new_zeros(len(self.trace.input_lengths), logits.shape[1])
        leavers = self.sequences[gone]
        self._logits = _copied(self._logits, leavers, logits[gone])
        self.trace.record_exit(self.layer, leavers)
        lengths = [length for length, leaves in zip(self._lengths, left, strict=True) if not leaves]
        self._select(torch.nonzero_static(self.expand(~leaving), size=sum(lengths)).squeeze(1))
        self.sequences, self.lengths = self.sequences[stay], self.lengths[stay]
        self._set_counts(self._counts[stay], lengths)

    def _padding_bias(self) -> Tensor | None:
        """(rows,) float, -inf on pads, where pads run as queries; None where no padding entered."""
        if not self._options.run_padding:
            return None
        return torch.zeros_like(self.real, dtype=self.hidden.dtype).masked_fill(~self.real, -torch.inf)

    def _append_summary(
        self, backbone: Backbone, layer: nn.Module, key: Tensor, value: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Lay the summary token of each sequence behind its own keys."""
        assert self.extras.summary is not None
        rows = torch.arange(len(key), device=key.device) + self._index
        last = cumulative(self._counts)[1:] + torch.arange(len(self._counts), device=key.device)
        total = len(key) + len(self._lengths)

        def lay(own: Tensor, extra: Tensor) -> Tensor:
            return own.new_empty(total, *own.shape[1:]).index_copy_(0, rows, own).index_copy_(0, last, extra)

        key = lay(key, backbone.heads_of(layer, "key", self.extras.summary))
        value = lay(value, backbone.heads_of(layer, "value", self.extras.summary))
        if bias is None and not self.extras.summary_bias:
            return key, value, None
        own = torch.zeros(len(rows), device=key.device, dtype=key.dtype) if bias is None else bias
        return key, value, lay(own, own.new_full((len(last),), self.extras.summary_bias))

    def _segment_lengths(self, segments: Tensor) -> list[int]:
        """Lengths of runs of equal (sequence, segment). Segments must be contiguous in their sequence."""
        other_segment, other_text = (ids.diff(prepend=ids[:1] - 1) != 0 for ids in (segments, self._index))
        starts = (other_segment | other_text).nonzero().squeeze(1).tolist()
        return [end - start for start, end in pairwise([*starts, len(segments)])]

    def _of_tokens(self, backbone: Backbone) -> Tensor:
        hidden = self.hidden
        entered = len(self._entered["_flat"])
        if len(hidden) < entered:
            stopped = hidden.new_zeros(entered, hidden.shape[-1]) if self._stopped is None else self._stopped
            hidden = _copied(stopped, self._entry, hidden)
        logits, real = backbone.read_tokens(hidden), self.trace.attention_mask
        lowest = torch.finfo(logits.dtype).min
        return pad(logits, self._rows, lowest).masked_fill(~real.unsqueeze(-1), lowest)
