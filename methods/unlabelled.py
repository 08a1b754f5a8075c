"""Training without labels, which leaves a method's own losses out: said once, where it cannot be meant."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch
from torch import Tensor

from methods.recipes import FINE_TUNE

if TYPE_CHECKING:
    from methods.base import TokenReducer

_TOLD: WeakSet[TokenReducer] = WeakSet()


def watch(reducer: TokenReducer, logits: Tensor) -> None:
    """Warn if a loss of the user's own, made of the `logits` of a pass in train() without labels, goes backward.

    Only where a method's loss is missed for certain: parts of the method train, and its knob asks for pressure. Passes
    without a backward pass (dropout at inference, probes) say nothing.
    """
    knob = reducer.traits.knob
    if reducer in _TOLD or reducer.stage == FINE_TUNE or torch.compiler.is_compiling() or not logits.requires_grad:
        return
    if knob is None or not (knob.after_training or getattr(reducer.options, knob.option)):
        return
    if any(p.requires_grad for name, p in reducer.named_parameters() if not name.startswith("model.")):
        logits.register_hook(lambda gradient: _tell(reducer))


def _tell(reducer: TokenReducer) -> None:
    if reducer in _TOLD:
        return
    _TOLD.add(reducer)
    warnings.warn(
        f"{reducer.method_name} trains without labels, which its own losses need: they are left out. Give labels, and "
        "add a loss of yours to output.loss; compute_loss_func and label_smoothing_factor of Trainer take labels away",
        stacklevel=2,
    )
