"""A batch as reducers read it: checked, and completed with what may be left out."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.backbone import Backbone
from methods.state import Inputs


def checked_inputs(
    backbone: Backbone,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    labels: Tensor | None = None,
) -> Inputs:
    """Check a batch and complete it.

    Raises:
        ValueError: as in `TokenReducer.forward`.
    """
    if input_ids.dim() != 2 or input_ids.numel() == 0:
        raise ValueError(f"input_ids must be (batch, seq_len) with at least one token, got {tuple(input_ids.shape)}")
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    for name, tensor in (("attention_mask", mask), ("token_type_ids", token_type_ids)):
        if tensor is not None and tensor.shape != input_ids.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)} but input_ids is {tuple(input_ids.shape)}")
    mask = mask.bool()
    if not torch.compiler.is_exporting() and not bool(mask[:, 0].all()):  # a graph has no such check
        raise ValueError("the first token of every sequence must be real; pad on the right (padding_side='right')")
    if input_ids.shape[1] > backbone.max_length:
        raise ValueError(
            f"texts of {input_ids.shape[1]} tokens are longer than the model's {backbone.max_length}; truncate them"
        )
    if labels is not None and len(labels) != len(input_ids):
        raise ValueError(f"{len(labels)} labels for {len(input_ids)} sequences")
    if labels is not None and backbone.head == "token_classification" and labels.shape != input_ids.shape:
        raise ValueError(f"labels are {tuple(labels.shape)} but input_ids is {tuple(input_ids.shape)}")
    return Inputs(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=backbone.position_ids(input_ids),
        token_type_ids=token_type_ids,
        labels=labels,
    )
