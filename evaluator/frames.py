"""Messages between controller and worker: a four-byte big-endian length, then one JSON object in UTF-8.

Nothing but plain JSON crosses the line: finite numbers, no repeated keys, bounded size. Both sides use this module;
it imports the standard library only.
"""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

HEADER = struct.Struct(">I")
REQUEST_LIMIT = 256 << 20
REPLY_LIMIT = 8 << 20


class FrameError(Exception):
    """The bytes are no message of ours."""


def encode(message: dict[str, Any], limit: int) -> bytes:
    """Raises `FrameError` when the message is larger than `limit` bytes or holds NaN or infinity."""
    try:
        body = json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise FrameError(f"a message could not be written as JSON: {error}") from error
    if len(body) > limit:
        raise FrameError(f"a message of {len(body)} bytes exceeds the limit of {limit}")
    return HEADER.pack(len(body)) + body


def body_length(header: bytes, limit: int) -> int:
    """Raises `FrameError` when the announced length exceeds `limit`."""
    (length,) = HEADER.unpack(header)
    if length > limit:
        raise FrameError(f"a message of {length} bytes was announced; the limit is {limit}")
    return int(length)


def decode(body: bytes) -> dict[str, Any]:
    """Raises `FrameError` for anything but one JSON object with finite numbers and distinct keys."""

    def constant(name: str) -> Any:
        raise FrameError(f"a message holds {name}, which is not a number")

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            raise FrameError("a message repeats a key")
        return result

    try:
        message = json.loads(body.decode(), parse_constant=constant, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        raise FrameError("a message is no JSON") from error
    if not isinstance(message, dict):
        raise FrameError("a message is no JSON object")
    return message


def read(stream: BinaryIO, limit: int) -> dict[str, Any] | None:
    """The next message of a blocking stream, or None at its end."""
    header = stream.read(HEADER.size)
    if not header:
        return None
    if len(header) < HEADER.size:
        raise FrameError("the stream ends inside a message")
    length = body_length(header, limit)
    body = stream.read(length)
    if len(body) < length:
        raise FrameError("the stream ends inside a message")
    return decode(body)
