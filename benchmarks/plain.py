"""Plain data: what can be written as JSON and read back unchanged, and the one text and hash of it."""

import dataclasses
import hashlib
import json
import math
import numbers
from collections.abc import Mapping
from typing import Any


def plain(value: Any, where: str) -> Any:
    """Copy `value` into plain JSON data: None, bool, int, float, str, list, dict; dataclasses become dicts.

    A float without a fraction becomes an int, so that 1 and 1.0 are one setting and have one hash.

    Args:
        where: the name of the value, for messages ("options.temperature").
    Raises:
        ValueError: for nan and infinity. TypeError: for anything that is no plain data, or a key that is no string.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(f"{where} is {number}; write a missing value as None")
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"{where} has the key {wrong[0]!r}; keys are strings")
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}; use None, bool, int, float, str, list or dict")


def canonical_json(data: Any) -> str:
    """Return the one JSON text of `data`: plain data, sorted keys, no spaces, ASCII."""
    return json.dumps(plain(data, "value"), sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_hash(data: Any) -> str:
    """Return the first 12 hex digits of the SHA-256 of `data` as canonical JSON."""
    return hashlib.sha256(canonical_json(data).encode("ascii")).hexdigest()[:12]
