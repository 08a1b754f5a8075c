"""A batch as reducers read it: checked, and completed with what may be left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from methods.backbone import Backbone
from methods.state import Inputs

# Keywords of stock models that change what is computed or returned, and that reducers do not take.
NOT_TAKEN = (
    "inputs_embeds",
    "head_mask",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "past_key_values",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "cu_seqlens",
    "output_hidden_states",
    "output_attentions",
)


def checked_ids(input_ids: Tensor | None, given: Mapping[str, Any]) -> Tensor:
    """The same `input_ids`, unless keywords are `given` that a stock model would obey; others change nothing.

    Raises:
        ValueError: one of `NOT_TAKEN` that is neither None nor False; no tensor of token ids.
    """
    for name in NOT_TAKEN:
        if given.get(name) is not None and given[name] is not False:
            raise ValueError(f"reducers do not take {name}; leave it out, or call the stock model, `reducer.model`")
    if not isinstance(input_ids, Tensor):
        raise ValueError(f"input_ids must be a tensor (batch, seq_len), got {type(input_ids).__name__}")
    return input_ids


def checked_inputs(
    backbone: Backbone,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    labels: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> Inputs:
    """Check a batch and complete it.

    Raises:
        ValueError: as in `TokenReducer.forward`.
    """
    if input_ids.dim() != 2 or input_ids.numel() == 0:
        raise ValueError(f"input_ids must be (batch, seq_len) with at least one token, got {tuple(input_ids.shape)}")
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if position_ids is None:
        position_ids = backbone.position_ids(input_ids)
    elif position_ids.shape == (1, input_ids.shape[1]):
        position_ids = position_ids.expand_as(input_ids)
    given = {"attention_mask": mask, "token_type_ids": token_type_ids, "position_ids": position_ids}
    for name, tensor in given.items():
        if tensor is not None and tensor.shape != input_ids.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)} but input_ids is {tuple(input_ids.shape)}")
    mask = mask.bool()
    if not torch.compiler.is_exporting() and not bool(mask[:, 0].all()):  # a graph has no such check
        raise ValueError("the first token of every sequence must be real; pad on the right (padding_side='right')")
    if input_ids.shape[1] > backbone.max_length:
        raise ValueError(
            f"texts of {input_ids.shape[1]} tokens are longer than the model's {backbone.max_length}; truncate them"
        )
    return Inputs(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=position_ids,
        token_type_ids=token_type_ids,
        labels=None if labels is None else checked_labels(backbone, labels, input_ids),
    )


def checked_labels(backbone: Backbone, labels: Tensor, input_ids: Tensor) -> Tensor:
    """Labels as losses read them: (batch,) long classes, or, where several may hold at once, (batch, num_labels) float.

    Classes may be (batch, 1), or () of a single text; values, (batch, num_labels) or (batch,), spans and labels of
    tokens stay as they are.
    Where the model's configuration leaves open whether classes exclude one another, labels decide, as in the stock
    model: float ones may hold together.

    Raises:
        ValueError: labels of another batch, shape or kind.
    """
    rows, classes = len(input_ids), backbone.num_labels
    labels = labels.reshape(1) if labels.dim() == 0 else labels
    if len(labels) != rows:
        raise ValueError(f"{len(labels)} labels for {rows} sequences")
    if backbone.head == "token_classification" and labels.shape != input_ids.shape:
        raise ValueError(f"labels are {tuple(labels.shape)} but input_ids is {tuple(input_ids.shape)}")
    if backbone.head == "regression" and labels.numel() != rows * classes:
        raise ValueError(f"values must be (batch, {classes}), got {tuple(labels.shape)}")
    if backbone.head != "classification":
        return labels
    together = backbone.multi_label or (backbone.config.problem_type is None and labels.is_floating_point())
    if together and labels.shape != (rows, classes):
        raise ValueError(f"labels that may hold together must be (batch, {classes}), got {tuple(labels.shape)}")
    if together:
        return labels if labels.is_floating_point() else labels.float()
    if labels.numel() != rows or labels.is_floating_point():
        raise ValueError(f"class ids must be (batch,) whole numbers, got {labels.dtype} {tuple(labels.shape)}")
    return labels.flatten().long()
