"""Names to methods: `@register` on the class, `lookup` with "did you mean"."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from methods.plugins import METHODS, found

if TYPE_CHECKING:
    from methods.base import TokenReducer

_METHODS: dict[str, type[TokenReducer]] = {}
Reducer = TypeVar("Reducer", bound="TokenReducer")


def register(name: str) -> Callable[[type[Reducer]], type[Reducer]]:
    """Class decorator that makes a `TokenReducer` available as `name` (snake_case, the module's own name)."""

    def add(cls: type[Reducer]) -> type[Reducer]:
        known = _METHODS.get(name, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"method '{name}' is registered already, by {_METHODS[name].__qualname__}")
        cls.method_name = name
        _METHODS[name] = cls
        return cls

    return add


def unregister(name: str) -> None:
    """Take `name` out again (tests that register a method on the fly)."""
    _METHODS.pop(name, None)


def available() -> tuple[str, ...]:
    """Registered names, plug-ins included, "dense" first, the others in alphabetical order."""
    found(METHODS, _accept)
    return tuple(sorted(_METHODS, key=lambda name: (name != "dense", name)))


def lookup(name: str) -> type[TokenReducer]:
    """The class registered as `name`, or the composition that a name such as "transkimmer+deebert" stands for.

    Raises:
        KeyError: unknown name; the message suggests the nearest one and lists all.
    """
    if "+" in name:
        from methods.composition import compose  # it builds on the classes that are registered here

        return compose(name)
    if name not in _METHODS:
        found(METHODS, _accept)
    if name in _METHODS:
        return _METHODS[name]
    near = difflib.get_close_matches(name, _METHODS, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    raise KeyError(f"no method '{name}'{hint} available: {', '.join(available())}")


def _accept(name: str, cls: Any) -> None:
    """Register the class that a plug-in offers as `name`.

    Raises:
        TypeError: it is none. ValueError: it registers itself under another name, or the name is taken.
    """
    from methods.base import TokenReducer  # it builds on this module

    if not (isinstance(cls, type) and issubclass(cls, TokenReducer)):
        raise TypeError(f"it has to be a class of TokenReducer, not {cls!r}")
    own = getattr(cls, "method_name", name)
    if own != name:
        raise ValueError(f"the class registers itself as '{own}'; give the entry point that name")
    register(name)(cls)
