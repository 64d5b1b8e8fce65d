"""Plain JSON as the store keeps it: as text, or compressed."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from typing import Any


def finite(value: Any) -> Any:
    """The value as plain JSON; numbers that JSON has no spelling for become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def text(value: Any) -> str:
    """Finite JSON without spaces."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def pack(value: Mapping[str, Any]) -> bytes:
    """Every one by itself: a dictionary shared by all would make them half as large, and all hang on one event."""
    return zlib.compress(text(finite(value)).encode())


def unpack(packed: bytes) -> dict[str, Any]:
    """The inverse of `pack`. Raises `ValueError` when it is damaged."""
    try:
        found = json.loads(zlib.decompress(packed))
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found
