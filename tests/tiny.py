"""Tiny models and batches of the library's own contract, and the methods of `tests/cases.py` on them."""

from __future__ import annotations

from torch import Tensor

import methods
from methods.testing import Subject
from methods.testing.models import (
    FAMILIES,
    HEADS,
    LENGTHS,
    TOKEN_HEADS,
    VOCABULARY,
    labels_for,
    logits_of,
    make_batch,
    tiny_config,
    tiny_model,
)
from tests.cases import EVERY

__all__ = [
    "FAMILIES",
    "HEADS",
    "LENGTHS",
    "TOKEN_HEADS",
    "VOCABULARY",
    "batch_for",
    "labels_for",
    "logits_of",
    "make_batch",
    "subject",
    "tiny_config",
    "tiny_model",
    "tiny_reducer",
]


def subject(name: str, family: str = "bert", head: str = "classification") -> Subject:
    """A method with its case, for the promises of the contract."""
    return Subject(name, family, head, EVERY[name])


def tiny_reducer(
    name: str, family: str = "bert", head: str = "classification", *, neutral: bool = False
) -> methods.TokenReducer:
    """The method on a tiny model, with its case's reducing or neutral options."""
    return subject(name, family, head).reducer(neutral=neutral)


def batch_for(
    reducer: methods.TokenReducer, lengths: tuple[int, ...] = LENGTHS, *, padded_to: int | None = None
) -> dict[str, Tensor]:
    """`make_batch` with the model's own padding token, completed with what the method reads."""
    batch = make_batch(lengths, padded_to=padded_to, pad_id=reducer.backbone.config.pad_token_id or 0)
    case = EVERY.get(reducer.method_name)
    return batch if case is None else case.completes(batch)
