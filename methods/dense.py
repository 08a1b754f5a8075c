"""The dense model: keeps everything. The reference that all others are measured against.

Packed mode still drops padding, so `dense` in packed mode is what unpadding alone gives.
"""

from __future__ import annotations

from methods.base import TokenReducer
from methods.config import Traits
from methods.registry import register


@register("dense")
class Dense(TokenReducer):
    """A stock model behind the common interface; every token is computed by every layer."""

    traits = Traits(title="Dense", pads="computed")
