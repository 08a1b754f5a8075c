"""The one loop over layers. It runs any reducer in any mode; a method only answers its hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from methods.backbone import Backbone
from methods.masked import MaskedState
from methods.packed import PackedState
from methods.state import Decision, Inputs, StateOptions, TokenState

MODES = ("masked", "packed")


class Hooks(Protocol):
    """What the loop asks: a `TokenReducer`, or a `Teacher` that only watches."""

    backbone: Backbone

    def before_layer(self, state: TokenState) -> Decision | None: ...

    def after_attention(self, state: TokenState) -> Decision | None: ...

    def after_layer(self, state: TokenState) -> Decision | None: ...

    def needs_scores(self, layer: int) -> bool: ...


def encode(reducer: Hooks, inputs: Inputs, mode: str, options: StateOptions) -> TokenState:
    """Run embeddings and layers of `reducer`'s backbone over a batch.

    Args:
        inputs: the checked batch.
        mode: "masked" (rectangular, differentiable) or "packed" (removed tokens are gone).
    Returns:
        The state after the last layer; its `outputs` are the logits, its `trace` says what was computed.
    """
    backbone = reducer.backbone
    layout = MaskedState if mode == "masked" else PackedState
    state: TokenState = layout(backbone, inputs, options)
    for index, layer in enumerate(backbone.layers):
        if index in options.skipped_layers:
            continue
        state.begin_layer(index)
        _ask(reducer.before_layer, state)
        state.attend(backbone, layer, scores=reducer.needs_scores(index))
        _ask(reducer.after_attention, state)
        state.feed_forward(backbone, layer)
        _ask(reducer.after_layer, state)
        if state.finished:
            break
    return state


def _ask(hook: Callable[[TokenState], Decision | None], state: TokenState) -> None:
    decision = hook(state)
    if decision is not None:
        state.apply(decision)
