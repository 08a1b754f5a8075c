"""Weights that a training stage began with, kept for a later one as a part of the reducer: checkpoints have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class InitialWeights(nn.Module):
    """A model's parameters as they were, as buffers; empty, and without a trace in checkpoints, until `note`."""

    def note(self, model: nn.Module) -> None:
        """Keep a copy of the parameters as they are now."""
        self.forget()
        for name, weight in model.named_parameters():
            self.register_buffer(_key(name), weight.detach().clone())

    def forget(self) -> None:
        """Be empty."""
        self._buffers.clear()

    def __bool__(self) -> bool:
        return bool(self._buffers)

    def __getitem__(self, name: str) -> Tensor:
        """The parameter `name` as it was."""
        return self.get_buffer(_key(name))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Hold what `state_dict` holds, whatever was noted before; torch's own would ask for the same names."""
        self.forget()
        for key, weight in state_dict.items():
            if key.startswith(prefix):
                self.register_buffer(key.removeprefix(prefix), weight.detach().clone())


def _key(name: str) -> str:
    return name.replace(".", "/")  # names of buffers have no dots
