"""Where the supported encoders keep their parts: one data entry each, no logic beyond looking things up.

A layer is seen as two blocks. The *attention* block is query/key/value projections, attention, and `finish_attention`
(output projection, residual, norm). The *feed-forward* block is `feed_forward` (both projections, residual, norm).
Where norms stand before the blocks (ModernBERT), hooks see the residual stream, and the head what `finish` makes of it.
Positions that turn queries and keys, and windows of local attention, are those of the input: removing a token brings no
others closer together.
A reducer may decide between the two, so neither block is ever called through the stock layer's own `forward`; the stock
sub-modules themselves are called, so hooks and adapters that users put on them keep working.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

ARCHITECTURES = {  # head -> how the names of the stock classes that carry it end
    "classification": "ForSequenceClassification",
    "regression": "ForSequenceClassification",
    "span_qa": "ForQuestionAnswering",
    "token_classification": "ForTokenClassification",
}
HEADS = tuple(ARCHITECTURES)
TOKEN_HEADS = ("span_qa", "token_classification")  # these read every token, the others one state of a text
Outputs = TypeVar("Outputs")
StockModule = Any  # a stock model, encoder or layer, whose parts differ by family and are found by name


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """One encoder family; every path is dotted, relative to the layer, the encoder or the model as its name says."""

    encoder: str  # attribute of the task model that holds embeddings and layers
    layers: Callable[[StockModule], list[nn.Module]]  # encoder -> layers in order of execution
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    fused: Callable[[StockModule, Tensor], Tensor] | None = None  # layer, hidden -> query, key and value side by side
    attention_dropout: str = "attention.self.dropout"
    finish_attention: Callable[[StockModule, Tensor, Tensor], Tensor] = lambda layer, context, hidden: (
        layer.attention.output(context, hidden)
    )
    feed_forward: Callable[[StockModule, Tensor], Tensor] = lambda layer, hidden: layer.output(
        layer.intermediate(hidden), hidden
    )
    project_embeddings: Callable[[StockModule], nn.Linear | None] = lambda encoder: None  # narrow embeddings -> hidden
    classify: Callable[[StockModule, Tensor], Tensor]  # model, (batch, 1, hidden_size) -> (batch, num_labels)
    pool: Callable[[StockModule, Tensor], Tensor]  # all of `classify` but its last layer -> (batch, hidden_size)
    first_dense: str  # path in the model of the dense layer that the classification head starts with
    first_activation: Callable[[Tensor], Tensor] = torch.tanh  # behind that layer
    first_norm: Callable[[StockModule], nn.Module | None] = lambda model: None  # behind that activation
    span: Callable[[StockModule, Tensor], Tensor] = lambda model, hidden: model.qa_outputs(hidden)
    tag: Callable[[StockModule, Tensor], Tensor] = lambda model, hidden: model.classifier(model.dropout(hidden))
    final_norm: Callable[[StockModule], nn.Module | None] = lambda encoder: None  # of encoder, behind its last layer
    rotary: Callable[[StockModule, StockModule, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    # encoder, layer, hidden, position_ids (rows, n) -> cosines and sines (rows, n, head_size); None: no such positions
    window: Callable[[StockModule], int | None] = lambda layer: None  # farthest position seen by attention; None: any
    token_types: bool = True  # the embeddings take token_type_ids
    embedded_positions: bool = True  # the embeddings take position_ids
    offset_positions: bool = False  # RoBERTa: positions count real tokens and start after the padding index
    dense_per_token: bool = False  # heads over tokens begin with the dense layer, too
    feed_forward_matrices: int = 2  # of hidden_size x intermediate_size; 3 where one of them gates
    num_heads: str = "num_attention_heads"
    intermediate_size: str = "intermediate_size"


def _albert_layers(encoder: StockModule) -> list[nn.Module]:
    """ALBERT runs the layers of a group again and again; the list repeats them as often as they run."""
    config, groups = encoder.config, encoder.encoder.albert_layer_groups
    passes_per_group = config.num_hidden_layers / config.num_hidden_groups
    return [layer for i in range(config.num_hidden_layers) for layer in groups[int(i / passes_per_group)].albert_layers]


def _albert_feed_forward(layer: StockModule, hidden: Tensor) -> Tensor:
    return layer.full_layer_layer_norm(layer.ff_chunk(hidden) + hidden)


def _albert_finish_attention(layer: StockModule, context: Tensor, hidden: Tensor) -> Tensor:
    attention = layer.attention
    return attention.LayerNorm(hidden + attention.output_dropout(attention.dense(context)))


def _bert_pool(model: StockModule, hidden: Tensor) -> Tensor:
    return model.dropout(model.bert.pooler(hidden))


def _roberta_pool(model: StockModule, hidden: Tensor) -> Tensor:
    head = model.classifier
    return head.dropout(torch.tanh(head.dense(head.dropout(hidden[:, 0]))))


def _electra_pool(model: StockModule, hidden: Tensor) -> Tensor:
    head = model.classifier
    return head.dropout(head.activation(head.dense(head.dropout(hidden[:, 0]))))


def _distilbert_pool(model: StockModule, hidden: Tensor) -> Tensor:
    return model.dropout(F.relu(model.pre_classifier(hidden[:, 0])))


def _albert_pool(model: StockModule, hidden: Tensor) -> Tensor:
    return model.dropout(model.albert.pooler_activation(model.albert.pooler(hidden[:, 0])))


def _modernbert_tokens(model: StockModule, hidden: Tensor) -> Tensor:
    return model.classifier(model.drop(model.head(hidden)))


SPECS: dict[str, BackboneSpec] = {
    "bert": BackboneSpec(
        encoder="bert",
        layers=lambda encoder: list(encoder.encoder.layer),
        classify=lambda model, hidden: model.classifier(_bert_pool(model, hidden)),
        pool=_bert_pool,
        first_dense="bert.pooler.dense",
    ),
    "roberta": BackboneSpec(
        encoder="roberta",
        layers=lambda encoder: list(encoder.encoder.layer),
        classify=lambda model, hidden: model.classifier(hidden),
        pool=_roberta_pool,
        first_dense="classifier.dense",
        offset_positions=True,
    ),
    "electra": BackboneSpec(
        encoder="electra",
        layers=lambda encoder: list(encoder.encoder.layer),
        project_embeddings=lambda encoder: getattr(encoder, "embeddings_project", None),
        classify=lambda model, hidden: model.classifier(hidden),
        pool=_electra_pool,
        first_dense="classifier.dense",
        first_activation=F.gelu,
    ),
    "distilbert": BackboneSpec(
        encoder="distilbert",
        layers=lambda encoder: list(encoder.transformer.layer),
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_dropout="attention.dropout",
        finish_attention=lambda layer, context, hidden: layer.sa_layer_norm(layer.attention.out_lin(context) + hidden),
        feed_forward=lambda layer, hidden: layer.output_layer_norm(layer.ffn(hidden) + hidden),
        classify=lambda model, hidden: model.classifier(_distilbert_pool(model, hidden)),
        pool=_distilbert_pool,
        first_dense="pre_classifier",
        first_activation=F.relu,
        span=lambda model, hidden: model.qa_outputs(model.dropout(hidden)),
        token_types=False,
        num_heads="n_heads",
        intermediate_size="hidden_dim",
    ),
    "albert": BackboneSpec(
        encoder="albert",
        layers=_albert_layers,
        query="attention.query",
        key="attention.key",
        value="attention.value",
        attention_dropout="attention.attention_dropout",
        finish_attention=_albert_finish_attention,
        feed_forward=_albert_feed_forward,
        project_embeddings=lambda encoder: encoder.encoder.embedding_hidden_mapping_in,
        classify=lambda model, hidden: model.classifier(_albert_pool(model, hidden)),
        pool=_albert_pool,
        first_dense="albert.pooler",
    ),
    "modernbert": BackboneSpec(
        encoder="model",
        layers=lambda encoder: list(encoder.layers),
        fused=lambda layer, hidden: layer.attn.Wqkv(layer.attn_norm(hidden)),
        attention_dropout="attn.out_drop",
        finish_attention=lambda layer, context, hidden: hidden + layer.attn.out_drop(layer.attn.Wo(context)),
        feed_forward=lambda layer, hidden: hidden + layer.mlp(layer.mlp_norm(hidden)),
        classify=lambda model, hidden: _modernbert_tokens(model, hidden[:, 0]),
        pool=lambda model, hidden: model.drop(model.head(hidden[:, 0])),
        first_dense="head.dense",
        first_activation=F.gelu,
        first_norm=lambda model: model.head.norm,
        span=_modernbert_tokens,
        tag=_modernbert_tokens,
        final_norm=lambda encoder: encoder.final_norm,
        rotary=lambda encoder, layer, hidden, places: encoder.rotary_emb(hidden, places, layer.attention_type),
        window=lambda layer: layer.config.sliding_window if layer.attn.sliding_window is not None else None,
        token_types=False,
        embedded_positions=False,
        dense_per_token=True,
        feed_forward_matrices=3,
    ),
}


def checkpointed(layer: StockModule, block: Callable[..., Outputs], *tensors: Tensor) -> Outputs:
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
        self.spec = SPECS[config.model_type]
        self.encoder: StockModule = getattr(model, self.spec.encoder)
        self.layers: list[nn.Module] = self.spec.layers(self.encoder)
        self.num_layers = len(self.layers)
        self.hidden_size: int = config.hidden_size
        self.num_heads: int = getattr(config, self.spec.num_heads)
        self.intermediate_size: int = getattr(config, self.spec.intermediate_size)
        self.num_labels: int = config.num_labels
        self.max_length: int = config.max_position_embeddings - self._position_offset

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


def head_of(model: nn.Module) -> str:
    """Which of `HEADS` a stock model carries.

    Raises:
        ValueError: a family or a head that is not supported.
    """
    return head_named(type(model).__name__, getattr(model, "config", None))


def head_named(architecture: str, config: Any) -> str:
    """Which of `HEADS` the class named `architecture` carries under `config`; see `head_of`."""
    family = getattr(config, "model_type", architecture)
    if family not in SPECS:
        raise ValueError(f"backbone '{family}' is not supported; use one of: {', '.join(SPECS)}")
    head = next((head for head, suffix in ARCHITECTURES.items() if architecture.endswith(suffix)), None)
    if head is None:
        kinds = ", ".join(f"*{suffix}" for suffix in dict.fromkeys(ARCHITECTURES.values()))
        raise ValueError(f"{architecture} has no supported head; use a model of these kinds: {kinds}")
    regression = head == "classification" and (config.num_labels == 1 or config.problem_type == "regression")
    return "regression" if regression else head


def build_model(architecture: str, config: transformers.PreTrainedConfig) -> transformers.PreTrainedModel:
    """A stock task model with fresh weights; `architecture` is its class name, checked against the supported families.

    Raises:
        ValueError: `architecture` is not a supported task model class.
    """
    allowed = architecture.endswith(tuple(ARCHITECTURES.values()))
    if not allowed or config.model_type not in SPECS or not hasattr(transformers, architecture):
        raise ValueError(f"cannot build '{architecture}' with a '{config.model_type}' configuration")
    return getattr(transformers, architecture)(config)
