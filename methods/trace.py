"""What one forward pass computed, token by token: the only source of every cost figure."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor


class Trace:
    """Tokens per layer and exits of one batch; filled by the encoder, read by costs, losses and figures.

    Attributes (B sequences, L layers, N padded length; all on the batch's device):
        input_lengths: (B,) long, real tokens of each sequence.
        entered: (B,) long, tokens that were embedded and that a head over tokens reads: the real ones, or all where a
            variant computes padding.
        attention_tokens: (B, L) long, tokens that entered the attention of each layer; 0 after an exit.
        attention_pairs: (B, L) long, query-key products computed per head; tokens squared unless keys differ.
        ffn_tokens: (B, L) long, tokens that entered the feed-forward of each layer.
        exit_layers: (B,) long, last layer run; L - 1 where no exit was taken.
        exited: (B,) bool, whether the sequence left through an off-ramp instead of the model's own head.
        overhead_macs: (B,) long, MACs of predictors, routers and off-ramps executed.
        attention_mask: (B, N) bool, the input's real tokens.
        padded_length: N of the input, pads included.
        first_lengths: (B,) long, real tokens of the first text of each pair; None unless a method tells them apart.
    """

    def __init__(self, attention_mask: Tensor, num_layers: int) -> None:
        batch, self.padded_length = attention_mask.shape
        device = attention_mask.device
        self.num_layers = num_layers
        self.input_lengths = attention_mask.sum(dim=1)
        self.entered = self.input_lengths
        self.exit_layers = torch.full((batch,), num_layers - 1, dtype=torch.long, device=device)
        self.exited = torch.zeros(batch, dtype=torch.bool, device=device)
        self.overhead_macs = torch.zeros(batch, dtype=torch.long, device=device)
        self.attention_mask = attention_mask
        self.first_lengths: Tensor | None = None
        self._attended: list[tuple[int, Tensor, Tensor, Tensor]] = []
        self._fed: list[tuple[int, Tensor, Tensor]] = []
        # Layers run, each with flat positions b * N + i (packed) or a (B, N) mask (masked).
        self._computed: list[tuple[int, Tensor]] = []

    @property
    def attention_tokens(self) -> Tensor:
        """See above; made when asked for, as a forward pass has no use for it."""
        return self._table((layer, rows, tokens) for layer, rows, tokens, _ in self._attended)

    @property
    def attention_pairs(self) -> Tensor:
        """See above."""
        return self._table((layer, rows, pairs) for layer, rows, _, pairs in self._attended)

    @property
    def ffn_tokens(self) -> Tensor:
        """See above."""
        return self._table(self._fed)

    def _table(self, noted: Iterable[tuple[int, Tensor, Tensor]]) -> Tensor:
        table = torch.zeros(len(self), self.num_layers, dtype=torch.long, device=self.input_lengths.device)
        for layer, rows, values in noted:
            table[:, layer].index_copy_(0, rows, values)
        return table

    def __len__(self) -> int:
        return len(self.input_lengths)

    def __getitem__(self, row: int) -> Trace:
        """The trace of one sequence, as a batch of one; pipelines take batches apart with it."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"sequence {row} of a batch of {len(self)}")
        row %= len(self)
        one, only = copy.copy(self), torch.zeros(1, dtype=torch.long, device=self.input_lengths.device)
        attention, pairs, ffn = (
            t[row].unsqueeze(1) for t in (self.attention_tokens, self.attention_pairs, self.ffn_tokens)
        )
        one._attended = [(layer, only, attention[layer], pairs[layer]) for layer in range(self.num_layers)]
        one._fed = [(layer, only, ffn[layer]) for layer in range(self.num_layers)]
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(one, name, value[row : row + 1])
        one._computed = [(layer, mask) for layer, mask in enumerate(self.keep_masks[row].unsqueeze(1)) if mask.any()]
        return one

    def record_attention(self, layer: int, sequences: Tensor, tokens: Tensor, pairs: Tensor) -> None:
        """Note that `sequences` (S,) ran the attention of `layer` with `tokens` (S,) queries and `pairs` (S,)."""
        self._attended.append((layer, sequences, tokens, pairs))

    def record_ffn(self, layer: int, sequences: Tensor, tokens: Tensor, computed: Tensor) -> None:
        """Note the feed-forward of `layer`; `computed`: flat positions (T,) long, or a (B, N) bool mask."""
        self._fed.append((layer, sequences, tokens))
        self._computed.append((layer, computed))

    def record_exit(self, layer: int, sequences: Tensor) -> None:
        """Note that `sequences` (S,) long left after `layer`."""
        self.exit_layers.index_fill_(0, sequences, layer)  # assigning a number would wait for a GPU
        self.exited.index_fill_(0, sequences, True)

    @property
    def keep_masks(self) -> Tensor:
        """(B, L, N) bool: which input positions each layer computed, after its last decision."""
        batch, device = len(self.input_lengths), self.input_lengths.device
        masks = torch.zeros(batch, self.num_layers, self.padded_length, dtype=torch.bool, device=device)
        for layer, computed in self._computed:
            if computed.dim() == 2:
                masks[:, layer] = computed
            else:
                masks[computed // self.padded_length, layer, computed % self.padded_length] = True
        return masks

    def keep_ratios(self) -> Tensor:
        """(B, L) float: share of a sequence's real tokens that each layer computed; pads never count."""
        kept = (self.keep_masks & self.attention_mask.unsqueeze(1)).sum(dim=-1)
        return kept / self.input_lengths.unsqueeze(1)
