"""The contract that every method keeps, for methods of your own: `check_reducer("my_method", options={...})`.

It needs nothing but the library itself: tiny models are made from configurations, and no test runner is involved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from methods.base import TokenReducer
from methods.entry import create
from methods.registry import lookup
from methods.testing.models import FAMILIES, HEADS, VARIANTS, tiny_model
from methods.testing.promises import PROMISES, BrokenPromise, Case, Subject


@dataclass(frozen=True)
class Report:
    """What was checked: combinations of backbone and head, and the heads that the method refuses, with its reasons."""

    method: str
    checked: tuple[tuple[str, str], ...]
    refused: dict[str, str]
    promises: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.method}: {len(self.promises)} promises kept on {len(self.checked)} backbones and heads"]
        return "\n".join([*lines, *(f"{head} refused: {reason}" for head, reason in self.refused.items())])


def check_reducer(
    method: str | type[TokenReducer],
    *,
    options: dict[str, Any] | None = None,
    neutral: dict[str, Any] | None = None,
    undecided: Callable[[Any], None] = lambda reducer: None,
    unnested: bool = False,
    families: Iterable[str] = tuple(FAMILIES),
    heads: Iterable[str] = HEADS,
    **case: Any,
) -> Report:
    """Check a registered method against every promise on tiny three-layer models; returns if all are kept.

    Args:
        method: its name or class. options: with which it drops tokens from texts of 4 to 12 tokens.
        neutral: options with which it keeps everything.
        undecided: puts trained parts, which may at first keep everything, into a state in which decisions differ from
            token to token.
        unnested: tokens may come back at a later layer.
        families, heads: which to check, of `FAMILIES` and `VARIANTS`, and of `HEADS`.
        case: more of `methods.testing.Case`, for unusual methods.
    Raises:
        BrokenPromise: an AssertionError whose message begins with the promise and ends with backbone and head.
        KeyError: the method is not registered.
    """
    name = method if isinstance(method, str) else method.method_name
    built = Case(options=options or {}, neutral=neutral or {}, undecided=undecided, unnested=unnested, **case)
    families, refused = tuple(families), dict(lookup(name).traits.unsupported)
    able = [head for head in heads if head not in refused]
    for head in set(heads) & set(refused):
        _check_refusal(name, built, head, refused[head])
    checked = tuple((family, head) for family in families for head in able)
    for promise in PROMISES.values():
        for family, head in checked:
            try:
                promise(Subject(name, family, head, built))
            except BrokenPromise as broken:
                broken.args = (f"{broken} ({name} on {family}, {head})",)
                raise
    return Report(name, checked, refused, tuple(PROMISES))


def _check_refusal(name: str, case: Case, head: str, reason: str) -> None:
    """A head that the traits call unsupported is refused, with the reason."""
    try:
        create(name, tiny_model("bert", head), **case.options)
    except ValueError as error:
        if reason in str(error):
            return
    raise BrokenPromise("what is unsupported is refused with the reason", f"{name} on a {head} head was not")


__all__ = [
    "FAMILIES",
    "HEADS",
    "PROMISES",
    "VARIANTS",
    "BrokenPromise",
    "Case",
    "Report",
    "Subject",
    "check_reducer",
]
