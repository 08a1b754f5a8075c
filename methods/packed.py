"""Packed mode: removed tokens, padding and exited sequences are really gone. The mode of inference."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.attention import AttentionScores, packed_attention
from methods.backbone import Backbone
from methods.packing import cumulative, pad, segment_rank, segment_sum, sequence_index, unpad
from methods.state import Decision, Extras, Inputs, StateOptions, TokenState
from methods.trace import Trace


class PackedState(TokenState):
    """Tokens as (total_tokens,), sequences end to end in input order; [CLS] is the first row of its sequence."""

    mode = "packed"

    def __init__(self, backbone: Backbone, inputs: Inputs, options: StateOptions) -> None:
        mask = inputs.attention_mask
        if options.masked_only:
            raise ValueError("the chosen options only mask tokens, as published code does; run them in masked mode")
        super().__init__(inputs, Trace(mask, backbone.num_layers), options)
        rows = torch.ones_like(mask) if options.run_padding else mask
        self._rows = rows  # (batch, seq_len) bool: positions that entered
        types = inputs.token_type_ids
        self.input_ids = unpad(inputs.input_ids, rows)
        self.hidden = backbone.embed(
            self.input_ids.unsqueeze(0),
            None if types is None else unpad(types, rows).unsqueeze(0),
            unpad(inputs.position_ids, rows).unsqueeze(0),
        ).squeeze(0)
        self.real = unpad(mask, rows)
        self.lengths = self.trace.input_lengths
        self._flat = rows.flatten().nonzero().squeeze(1)  # position b * seq_len + i of each row
        self.positions = self._flat % mask.shape[1]
        self.sequences = torch.arange(mask.shape[0], device=mask.device)  # input row of each sequence still here
        self._set_counts(rows.sum(dim=1))
        self._keep_states = options.forwards and backbone.reads_tokens
        self._entry = torch.arange(len(self._flat), device=mask.device)  # row at entry of each row now
        self._stopped: Tensor | None = None  # (rows at entry, hidden_size): last states of tokens dropped so far
        self._logits: Tensor | None = None  # (batch, num_labels) of sequences that exited
        self._leaping: tuple[Tensor, ...] | None = None

    def counts(self) -> Tensor:
        return self._counts

    def rank(self, values: Tensor) -> Tensor:
        return segment_rank(values, self._counts)

    def sum(self, values: Tensor) -> Tensor:
        return segment_sum(values, self._index, len(self._counts))

    def expand(self, values: Tensor) -> Tensor:
        return values.index_select(0, self._index)

    def first_tokens(self) -> Tensor:
        return self.hidden.index_select(0, self._starts)

    @property
    def finished(self) -> bool:
        return len(self.sequences) == 0

    def begin_layer(self, index: int) -> None:
        self.layer = index
        self.extras = Extras()
        self._layer_input: Tensor | None = self.hidden  # None once the layer is done

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
        kept = decision.kept(self.first)
        if kept is not None:
            decision = decision.select(kept)
            self._drop(kept)
        run = decision.stays(self.first)
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
        query, key, value = backbone.query_key_value(layer, self.hidden, self.at(self.inputs.position_ids))
        lengths = self._counts if self.extras.segments is None else self._segment_lengths(self.extras.segments)
        key_lengths, bias = lengths, self._padding_bias()
        if self.extras.summary is not None:
            key, value, bias = self._append_summary(backbone, layer, key, value, bias)
            self.trace.overhead_macs[self.sequences] += 2 * backbone.hidden_size**2
            key_lengths = lengths + 1
        queries, keys = lengths.tolist(), key_lengths.tolist()
        window = self._window(backbone, layer)
        context, received, diagonal = packed_attention(
            query,
            key,
            value,
            queries,
            keys,
            bias=bias,
            places=None if window is None else self.places(),
            window=window,
            dropout=self._dropout(backbone, layer),
            scores=scores,
        )
        self.hidden = backbone.finish_attention(layer, context, self.hidden)
        self.scores = None if received is None or diagonal is None else AttentionScores(received, diagonal)
        pairs = lengths * key_lengths
        if self.extras.segments is not None:
            owner = self._index.index_select(0, cumulative(lengths)[:-1])
            pairs = segment_sum(pairs, owner, len(self._counts))
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
        logits = backbone.classify(self.first_tokens())
        if self._logits is None:
            return logits
        return self._logits.index_copy(0, self.sequences, logits.to(self._logits.dtype))

    def _set_counts(self, counts: Tensor) -> None:
        """Take over new token counts per sequence (sequences,) and what follows from them."""
        self._counts = counts
        self._index = sequence_index(counts)
        self._starts = cumulative(counts)[:-1]
        self.live = torch.ones(len(self._index), dtype=torch.bool, device=counts.device)
        self.first = self.positions == 0

    def _select(self, index: Tensor) -> None:
        """Keep the rows `index` (rows,) long of everything that has one entry per token."""
        for name in ("hidden", "_layer_input", "_flat", "_entry", "positions", "input_ids", "real"):
            rows = getattr(self, name)
            setattr(self, name, None if rows is None else rows.index_select(0, index))
        if self.scores is not None:
            self.scores = self.scores.select(index)

    def _drop(self, keep: Tensor) -> None:
        index = keep.nonzero().squeeze(1)
        if len(index) == len(keep):
            return
        if self._leaping is not None:
            raise ValueError("tokens cannot be dropped in a layer that others leap over")
        if self._keep_states:
            # A token dropped between attention and feed-forward keeps the state it entered the layer with.
            gone = (~keep).nonzero().squeeze(1)
            if self._stopped is None:
                self._stopped = self.hidden.new_zeros(int(self._rows.sum()), self.hidden.shape[-1])
            last = self.hidden if self._layer_input is None else self._layer_input
            self._stopped = self._stopped.index_copy(0, self._entry[gone], last[gone])
        counts = segment_sum(keep.long(), self._index, len(self._counts))
        self._select(index)
        self._set_counts(counts)

    def _leap(self, run: Tensor) -> None:
        """Set aside the tokens that do not `run` this layer."""
        assert self._layer_input is not None  # leaps are decided before the layer
        index = run.nonzero().squeeze(1)
        counts = segment_sum(run.long(), self._index, len(self._counts))
        self._leaping = (
            index,
            self._counts,
            self._layer_input,
            self._flat,
            self._entry,
            self.positions,
            self.input_ids,
            self.real,
        )
        self.scores = None
        self._select(index)
        self._set_counts(counts)

    def _land(self) -> None:
        """Put the tokens that leapt over the layer back between the others, in input order."""
        assert self._leaping is not None
        index, counts, hidden, self._flat, self._entry, self.positions, self.input_ids, self.real = self._leaping
        self.hidden = hidden.index_copy(0, index, self.hidden)
        self.scores = self._leaping = None
        self._set_counts(counts)

    def _exit(self, leaving: Tensor, logits: Tensor) -> None:
        gone = leaving.nonzero().squeeze(1)
        if len(gone) == 0:
            return
        if self._logits is None:
            self._logits = logits.new_zeros(len(self.trace.input_lengths), logits.shape[1])
        self._logits = self._logits.index_copy(0, self.sequences[gone], logits[gone])
        self.trace.record_exit(self.layer, self.sequences[gone])
        staying = ~leaving
        self._select(self.expand(staying).nonzero().squeeze(1))
        self.sequences, self.lengths = self.sequences[staying], self.lengths[staying]
        self._set_counts(self._counts[staying])

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
        total = len(key) + len(self._counts)

        def lay(own: Tensor, extra: Tensor) -> Tensor:
            return own.new_empty(total, *own.shape[1:]).index_copy(0, rows, own).index_copy(0, last, extra)

        key = lay(key, backbone.heads_of(layer, "key", self.extras.summary))
        value = lay(value, backbone.heads_of(layer, "value", self.extras.summary))
        if bias is None and not self.extras.summary_bias:
            return key, value, None
        own = torch.zeros(len(rows), device=key.device, dtype=key.dtype) if bias is None else bias
        return key, value, lay(own, own.new_full((len(last),), self.extras.summary_bias))

    def _segment_lengths(self, segments: Tensor) -> Tensor:
        """Lengths of runs of equal (sequence, segment); (runs,) long. Segments must be contiguous in their sequence."""
        other_segment, other_text = (ids.diff(prepend=ids[:1] - 1) != 0 for ids in (segments, self._index))
        change = other_segment | other_text
        starts = change.nonzero().squeeze(1)
        return starts.diff(append=starts.new_tensor([len(segments)]))

    def _of_tokens(self, backbone: Backbone) -> Tensor:
        hidden = self.hidden
        if self._stopped is not None:
            hidden = self._stopped.index_copy(0, self._entry, hidden)
        logits, real = backbone.read_tokens(hidden), self.trace.attention_mask
        lowest = torch.finfo(logits.dtype).min
        return pad(logits, self._rows, lowest).masked_fill(~real.unsqueeze(-1), lowest)
