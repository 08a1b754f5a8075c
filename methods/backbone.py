"""A stock encoder as every method sees it, whatever its family.

A layer is seen as two blocks. The *attention* block is query/key/value projections, attention, and `finish_attention`
(output projection, residual, norm). The *feed-forward* block is `feed_forward` (both projections, residual, norm).
Where norms stand before the blocks (ModernBERT), hooks see the residual stream, and the head what `finish` makes of it.
Positions that turn queries and keys, and windows of local attention, are those of the input: removing a token brings no
others closer together.
A reducer may decide between the two, so neither block is ever called through the stock layer's own `forward`, nor are
the model, its encoder or the attention module: hooks on these never run. What they consist of (embeddings, projections,
norms, feed-forward, pooler, head) is called, so hooks and adapters on such modules keep working.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor, nn
from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

from methods.families import MULTI_LABEL, SPECS, TOKEN_HEADS, BackboneSpec, StockModule, head_of

Outputs = TypeVar("Outputs")


def checkpointed(layer: StockModule, block: Callable[..., Outputs], *tensors: Tensor | None) -> Outputs:
    """`block(*tensors)`, computed again in the backward pass where the user asked for that.

    Asking is transformers' own `activation_checkpointing_enable`, which marks the stock layers.
    """
    if layer.training and torch.is_grad_enabled() and getattr(layer, "gradient_checkpointing", False):
        return layer._gradient_checkpointing_func(block, *tensors)
    return block(*tensors)


class Backbone:
    """A stock transformers task model, seen through its `BackboneSpec`.

    Args:
        model: a task model of a family in `SPECS` whose class name ends as `ARCHITECTURES` says.
    Raises:
        ValueError: the family or the head is not supported; names what is.
    """

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        config: Any = model.config  # its fields differ by family
        self.model, self.config = model, config
        self.head = head_of(model)
        self.reads_tokens = self.head in TOKEN_HEADS
        self.averages = not self.reads_tokens and getattr(config, "classifier_pooling", "cls") == "mean"
        self.encoder: StockModule = getattr(model, self.spec.encoder)
        self.layers: list[nn.Module] = self.spec.layers(self.encoder)
        self.num_layers = len(self.layers)
        self.hidden_size: int = config.hidden_size
        self.num_heads: int = getattr(config, self.spec.num_heads)
        self.intermediate_size: int = getattr(config, self.spec.intermediate_size)
        self.num_labels: int = config.num_labels
        self.max_length: int = config.max_position_embeddings - self._position_offset

    @property
    def spec(self) -> BackboneSpec:
        """How the family computes; looked up, as it holds code, which no copy to another process takes along."""
        return SPECS[self.config.model_type]

    @property
    def multi_label(self) -> bool:
        """Whether labels of a text may hold together; known from the configuration, or since labels were seen."""
        return self.head == "classification" and self.config.problem_type == MULTI_LABEL

    @property
    def _position_offset(self) -> int:
        return self.config.pad_token_id + 1 if self.spec.offset_positions else 0

    def position_ids(self, input_ids: Tensor) -> Tensor:
        """Position of each token as the stock model counts; (batch, seq_len) ids -> the same shape, long."""
        if self.spec.offset_positions:
            real = input_ids.ne(self.config.pad_token_id)
            return real.cumsum(dim=1) * real + self.config.pad_token_id
        return torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None, position_ids: Tensor) -> Tensor:
        """Embeddings after norm, dropout and (ALBERT, ELECTRA) projection; (rows, n) -> (rows, n, hidden_size)."""
        arguments = {"input_ids": input_ids}
        if self.spec.embedded_positions:
            arguments["position_ids"] = position_ids
        if self.spec.token_types:
            arguments["token_type_ids"] = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        hidden = self.encoder.embeddings(**arguments)
        project = self.spec.project_embeddings(self.encoder)
        return hidden if project is None else project(hidden)

    def query_key_value(self, layer: nn.Module, hidden: Tensor, position_ids: Tensor | None) -> tuple[Tensor, ...]:
        """What attention compares and adds up; (*tokens, hidden_size) -> three of (*tokens, heads, head_size).

        Args:
            position_ids: (*tokens) long, in the input; they turn queries and keys where the backbone is rotary. None
                elsewhere.
        """
        if self.spec.fused is None:
            return tuple(self.heads_of(layer, which, hidden) for which in ("query", "key", "value"))
        projected = self.spec.fused(layer, hidden).chunk(3, dim=-1)
        query, key, value = (heads.unflatten(-1, (self.num_heads, -1)) for heads in projected)
        if self.spec.rotary is None or position_ids is None:
            return query, key, value
        packed = hidden.dim() == 2
        if packed:
            query, key, hidden, position_ids = (x.unsqueeze(0) for x in (query, key, hidden, position_ids))
        turned = apply_rotary_pos_emb(query, key, *self.spec.rotary(self.encoder, layer, hidden, position_ids), 2)
        return *(heads.squeeze(0) if packed else heads for heads in turned), value

    def window(self, layer: nn.Module) -> int | None:
        """How many input positions away the attention of `layer` still sees; None: it sees all."""
        return self.spec.window(layer)

    @property
    def is_rotary(self) -> bool:
        """Whether positions turn queries and keys instead of being part of the embeddings."""
        return self.spec.rotary is not None

    def heads_of(self, layer: nn.Module, which: str, hidden: Tensor) -> Tensor:
        """Project `hidden` (..., hidden_size) with `which` ("query", "key", "value") -> (..., heads, head_size).

        Raises:
            ValueError: on a rotary backbone, where there are no queries and keys without a position.
        """
        if self.is_rotary:
            raise ValueError(
                f"the attention of {self.config.model_type} needs a position for every token, summaries too"
            )
        projected = attrgetter(getattr(self.spec, which))(layer)(hidden)
        return projected.unflatten(-1, (self.num_heads, -1))

    def attention_dropout(self, layer: nn.Module) -> float:
        """Dropout probability on attention weights, 0 outside training."""
        dropout = attrgetter(self.spec.attention_dropout)(layer)
        return getattr(dropout, "p", 0.0) if dropout.training else 0.0

    def finish_attention(self, layer: nn.Module, context: Tensor, hidden: Tensor) -> Tensor:
        """Output projection, residual and norm; context (..., heads, head_size), hidden (..., hidden_size)."""
        return self.spec.finish_attention(layer, context.flatten(-2), hidden)

    def feed_forward(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """The whole feed-forward block with residual and norm; (..., hidden_size) -> the same shape."""
        return checkpointed(layer, partial(self.spec.feed_forward, layer), hidden)

    def finish(self, hidden: Tensor) -> Tensor:
        """What the head sees of states behind the last layer; (..., hidden_size) -> the same shape."""
        norm = self.spec.final_norm(self.encoder)
        return hidden if norm is None else norm(hidden)

    def classify(self, texts: Tensor) -> Tensor:
        """Head over whole texts, on what `TokenState.read` gives; (batch, hidden_size) -> (batch, num_labels)."""
        return self.spec.classify(self.model, texts.unsqueeze(1))

    def pool(self, texts: Tensor) -> Tensor:
        """What the last layer of `classify` reads, dropout included; (batch, hidden_size) -> the same shape."""
        return self.spec.pool(self.model, texts.unsqueeze(1))

    def read_tokens(self, hidden: Tensor) -> Tensor:
        """Head over tokens; (..., hidden_size) -> (..., num_labels), for spans start and end logits."""
        return (self.spec.span if self.head == "span_qa" else self.spec.tag)(self.model, self.finish(hidden))

    def first_dense(self) -> nn.Linear:
        """The dense layer of the classification head (BERT: the pooler's), hidden_size -> hidden_size."""
        return attrgetter(self.spec.first_dense)(self.model)

    def pooled(self, texts: Tensor) -> Tensor:
        """As `pool`, but never with dropout: for comparing two models; (batch, hidden_size) -> the same shape."""
        activated = self.spec.first_activation(self.first_dense()(texts))
        norm = self.spec.first_norm(self.model)
        return activated if norm is None else norm(activated)

    def embedding_macs(self) -> int:
        """MACs per token of the embedding projection; 0 where embeddings are as wide as the layers."""
        project = self.spec.project_embeddings(self.encoder)
        return 0 if project is None else project.in_features * project.out_features

    def layer_macs(self, tokens: Tensor, pairs: Tensor | None = None, ffn: Tensor | None = None) -> Tensor:
        """MACs of one layer: 4 n d^2 (projections) + 2 pairs d (scores, context) + 2 n d f for n tokens (3 if gated).

        Local attention is charged for all pairs, as torch's attention computes them.


        Args:
            tokens: long, of any shape, that enter the attention.
            pairs: of query and key; by default all tokens attend to each other. ffn: tokens that enter the
                feed-forward; by default all.
        """
        d, f = self.hidden_size, self.intermediate_size
        pairs, ffn = tokens**2 if pairs is None else pairs, tokens if ffn is None else ffn
        return 4 * d * d * tokens + 2 * d * pairs + self.spec.feed_forward_matrices * d * f * ffn

    def dense_macs(self, lengths: Tensor) -> Tensor:
        """MACs of the stock model on inputs of `lengths` (batch,) tokens, all of them computed; (batch,) long."""
        layers = self.num_layers * self.layer_macs(lengths)
        return layers + self.embedding_macs() * lengths + self.head_macs(lengths)

    def head_macs(self, tokens: Tensor) -> Tensor:
        """MACs of the head for sequences of `tokens` (batch,) long; a classifier reads one state of each."""
        if self.reads_tokens:
            dense = self.hidden_size**2 if self.spec.dense_per_token else 0
            return tokens * (dense + self.hidden_size * self.num_labels)
        return torch.full_like(tokens, self.hidden_size * (self.hidden_size + self.num_labels))
