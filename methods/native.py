"""Reducers as transformers sees its own models: Auto classes, `Trainer` and pipelines find them by configuration.

Importing `methods` registers the configuration. No code comes with a model: nothing is read but JSON and safetensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import transformers
from torch import Tensor
from transformers.utils import logging as hf_logging

from methods.config import ReducerConfig, ReducerOutput
from methods.families import ARCHITECTURES, head_named
from methods.registry import lookup

if TYPE_CHECKING:
    from methods.base import TokenReducer

AUTO_CLASSES = {suffix: getattr(transformers, f"AutoModel{suffix}") for suffix in ARCHITECTURES.values()}
_made: dict[tuple[Any, str], type[TokenReducer]] = {}  # method's class, kind of head -> class of both


def with_head(cls: type[TokenReducer], head: str) -> type[TokenReducer]:
    """`cls` under a name such as "TranskimmerForQuestionAnswering", from which transformers tells what labels it takes.

    Args:
        head: one of `methods.backbone.HEADS`.
    """
    suffix = ARCHITECTURES[head]
    if (cls, suffix) in _made:
        return _made[cls, suffix]
    name = cls.__name__ + suffix
    members: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": name, "__doc__": cls.__doc__}
    members["__reduce__"] = _by_configuration
    if head == "span_qa":
        members["forward"] = _span_forward(cls)
    made = type(name, (cls,), members)
    _made[cls, suffix] = made
    _announce(suffix, made)
    return made


def _by_configuration(self: TokenReducer) -> tuple[Any, ...]:
    """A copy, in this process or another, finds its class as a saved folder does: none has a place in a module."""
    return _empty, (self.config,), self.__dict__


def _empty(config: ReducerConfig) -> TokenReducer:
    made = class_of(config)
    return made.__new__(made)


def _span_forward(cls: type[TokenReducer]) -> Any:
    """`forward` without `labels`: what it lists of labels is what `Trainer` waits for."""

    def forward(
        self: TokenReducer,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **others: Any,
    ) -> ReducerOutput:
        return cls.forward(
            self,
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            start_positions=start_positions,
            end_positions=end_positions,
            **others,
        )

    forward.__doc__ = cls.forward.__doc__
    return forward


def class_of(config: ReducerConfig) -> type[TokenReducer]:
    """The class that a saved configuration is of.

    Raises:
        KeyError: its method is not registered here. ValueError: its backbone or head is not supported.
    """
    return with_head(lookup(config.method), head_named(config.backbone_class, config.stock_config()))


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No bar while transformers loads weights."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


class _Loader:
    """What an Auto class finds for a reducer's configuration; it hands on to the class of the method."""

    config_class = ReducerConfig
    suffix: str

    @classmethod
    def from_pretrained(cls, path: str, *args: Any, config: ReducerConfig, **kwargs: Any) -> TokenReducer:
        """Load a saved reducer whose head is of this kind."""
        return cls._class(config).from_pretrained(path, *args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config: ReducerConfig, **kwargs: Any) -> TokenReducer:
        return cls._class(config)._from_config(config, **kwargs)

    @classmethod
    def _class(cls, config: ReducerConfig) -> type[TokenReducer]:
        if not config.backbone_class.endswith(cls.suffix):
            other = next((suffix for suffix in AUTO_CLASSES if config.backbone_class.endswith(suffix)), "")
            raise ValueError(f"this reducer is a {config.backbone_class}; load it with AutoModel{other}")
        return class_of(config)


_known: dict[str, tuple[type, ...]] = {
    suffix: (type(f"Reducer{suffix}", (_Loader,), {"suffix": suffix}),) for suffix in AUTO_CLASSES
}


def _announce(suffix: str, *classes: type) -> None:
    """Tell transformers of classes of reducers, so that pipelines take them."""
    _known[suffix] += classes
    AUTO_CLASSES[suffix].register(ReducerConfig, _known[suffix], exist_ok=True)


transformers.AutoConfig.register(ReducerConfig.model_type, ReducerConfig, exist_ok=True)
for _suffix in AUTO_CLASSES:
    _announce(_suffix)
