"""The bare matrix products of a forward pass: recorded as they run, replayed with nothing in between.

The time of a replay is what a pass would take if norms, activations, residuals, decisions and index work were free:
time / replay is an engine's overhead. With few tokens the replay itself is slower per multiply-add, as every weight is
still read once; dense replay / replay, over the ratio of FLOPs, is the bound of what any engine can realise.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from methods import attention

PRODUCTS: set[Callable[..., Any]] = {
    F.linear,
    F.scaled_dot_product_attention,
    torch.matmul,
    Tensor.matmul,
    Tensor.__matmul__,
    torch.bmm,
}
SCORED = "attention_with_scores"  # replayed as plain attention at the same sizes


class Recorder(TorchFunctionMode):
    """Notes every call of some functions that runs inside it; `replay` runs them again, alone.

    States are replaced by buffers of the same shapes and strides, weights and indices are the pass's own.
    """

    def __init__(self, functions: Collection[Callable[..., Any]]) -> None:
        super().__init__()
        self._functions = functions
        self.calls: list[Callable[[], object]] = []
        self._buffers: dict[tuple[Any, ...], Tensor] = {}
        self._silent = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._functions and not self._silent and _has_states(args):
            self._note(func, args, kwargs)
        return func(*args, **kwargs)

    def replay(self) -> None:
        """Run the recorded calls."""
        for call in self.calls:
            call()

    def _note(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = tuple(self._stand_in(value, place) for place, value in enumerate(args))
        named = {name: self._stand_in(value, name) for name, value in kwargs.items()}
        self.calls.append(lambda: func(*given, **named))

    def _stand_in(self, value: Any, place: object) -> Any:
        if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
            return [self._stand_in(item, (place, number)) for number, item in enumerate(value)]
        if not isinstance(value, Tensor) or isinstance(value, torch.nn.Parameter) or not value.is_floating_point():
            return value
        key = (place, value.shape, value.stride(), value.dtype, value.device)
        if key not in self._buffers:
            self._buffers[key] = torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device=value.device
            ).normal_(std=0.02)
        return self._buffers[key]

    @contextmanager
    def scored_as_plain(self) -> Iterator[None]:
        """Inside, attention that also gives scores is noted as plain attention, not as the products it is made of."""
        own = getattr(attention, SCORED)

        def noted(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float) -> Any:
            if F.scaled_dot_product_attention in self._functions:
                given = {"attn_mask": bias, "dropout_p": dropout}
                self._note(F.scaled_dot_product_attention, (query, key, value), given)
            self._silent = True
            try:
                return own(query, key, value, bias, dropout)
            finally:
                self._silent = False

        setattr(attention, SCORED, noted)
        try:
            yield
        finally:
            setattr(attention, SCORED, own)


def _has_states(values: Iterable[Any]) -> bool:
    """Whether there is a floating-point tensor among them; sums of counts and indices are no work of the model."""
    return any(
        _has_states(value)
        if isinstance(value, (list, tuple))
        else isinstance(value, Tensor) and value.is_floating_point()
        for value in values
    )


def record(run: Callable[[], object], functions: Collection[Callable[..., Any]] = PRODUCTS) -> Recorder:
    """Run once and note the calls of `functions`, by default the matrix products."""
    recorder = Recorder(functions)
    with recorder.scored_as_plain(), recorder:
        run()
    return recorder
