"""Where the supported encoders keep their parts: one data entry each, no logic beyond looking things up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

ARCHITECTURES = {  # head -> how the names of the stock classes that carry it end
    "classification": "ForSequenceClassification",
    "regression": "ForSequenceClassification",
    "span_qa": "ForQuestionAnswering",
    "token_classification": "ForTokenClassification",
}
HEADS = tuple(ARCHITECTURES)
TOKEN_HEADS = ("span_qa", "token_classification")  # these read every token, the others one state of a text
CAUSAL = ("is_decoder", "add_cross_attention")  # fields of a stock configuration with which a model is no encoder
MULTI_LABEL: Final = "multi_label_classification"  # stock configurations' `problem_type` where labels hold together
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


def head_of(model: nn.Module) -> str:
    """Which of `HEADS` a stock model carries.

    Raises:
        ValueError: a family or a head that is not supported.
    """
    return head_named(type(model).__name__, getattr(model, "config", None))


def check_stock(model: nn.Module) -> None:
    """Refuse a class of the user's own, whose `forward` a reducer would pass by and which no saved one could name.

    Raises:
        ValueError: its class is none of transformers'.
    """
    name = type(model).__name__
    if type(model) is not getattr(transformers, name, None):
        raise ValueError(
            f"{type(model).__module__}.{name} is no class of transformers: its own forward would not be called; put "
            "its weights into a stock model, or wrap modules inside its layers (hooks and adapters are called there)"
        )


def head_named(architecture: str, config: Any) -> str:
    """Which of `HEADS` the class named `architecture` carries under `config`; see `head_of`."""
    family = getattr(config, "model_type", architecture)
    if family not in SPECS:
        raise ValueError(f"backbone '{family}' is not supported; use one of: {', '.join(SPECS)}")
    for name in CAUSAL:
        if getattr(config, name, False):
            raise ValueError(f"{name}=True is not supported: reducers run encoders, whose tokens all see one another")
    head = next((head for head, suffix in ARCHITECTURES.items() if architecture.endswith(suffix)), None)
    if head is None:
        kinds = ", ".join(f"*{suffix}" for suffix in dict.fromkeys(ARCHITECTURES.values()))
        raise ValueError(f"{architecture} has no supported head; use a model of these kinds: {kinds}")
    kind = config.problem_type or ("regression" if config.num_labels == 1 else None)  # as stock models tell
    return "regression" if head == "classification" and kind == "regression" else head


def build_model(architecture: str, config: transformers.PreTrainedConfig) -> transformers.PreTrainedModel:
    """A stock task model with fresh weights; `architecture` is its class name, checked against the supported families.

    Raises:
        ValueError: `architecture` is not a supported task model class.
    """
    allowed = architecture.endswith(tuple(ARCHITECTURES.values()))
    if not allowed or config.model_type not in SPECS or not hasattr(transformers, architecture):
        raise ValueError(f"cannot build '{architecture}' with a '{config.model_type}' configuration")
    return getattr(transformers, architecture)(config)
