"""JSON as language models write it: comments, trailing commas, other quotes, raw line ends, bare keys, a missing end.

Whatever JSON allows is read as JSON reads it; nothing is evaluated. The reader goes once over the text, without
recursion deeper than `_DEPTH`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_DEPTH = 20
_SPACE = re.compile(r"(?:\s+|//[^\n]*|#[^\n]*|/\*.*?\*/)+", re.DOTALL)
_BARE = re.compile(r"[A-Za-z_][\w-]*")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}
#: Opening quotes, the longest first, and what closes each.
_QUOTES = {'"""': '"""', "'''": "'''", '"': '"', "'": "'", "`": "`", "“": "”", "”": "”", "„": "“", "‘": "’", "«": "»"}
_PLAIN = {quote: re.compile(rf"[^\\{quote[0]}]+") for quote in set(_QUOTES.values())}


class LenientError(ValueError):
    """The text is no object, however kindly one reads it."""


@dataclass
class Partial:
    """A text that ended before its closing quote."""

    text: str


def read_object(text: str, start: int) -> tuple[dict[str, Any], int]:
    """The object whose brace is at `start` and the position behind it.

    An object that the text's end cuts off holds what was complete, and `Partial` for a string that was not. Raises
    `LenientError`.
    """
    reader = _Reader(text, start)
    value = reader.value(0)
    if not isinstance(value, dict):
        raise LenientError("no object")
    return value, reader.at


class _Reader:
    def __init__(self, text: str, at: int):
        self.text, self.at = text, at

    def value(self, depth: int) -> Any:
        if depth > _DEPTH:
            raise LenientError("nested too deeply")
        self.skip()
        if self.ended:
            return None
        character = self.text[self.at]
        if character == "{":
            return self.members(depth)
        if character == "[":
            return self.items(depth)
        if self.quote():
            return self.string()
        if found := _NUMBER.match(self.text, self.at):
            self.at = found.end()
            return float(found.group())
        if (found := _BARE.match(self.text, self.at)) and found.group() in _WORDS:
            self.at = found.end()
            return _WORDS[found.group()]
        raise LenientError(f"no value at {self.at}")

    def members(self, depth: int) -> dict[str, Any]:
        self.at += 1
        result: dict[str, Any] = {}
        while self.more("}"):
            key: Any
            if self.quote():
                key = self.string()
            elif found := _BARE.match(self.text, self.at):
                key, self.at = found.group(), found.end()
            else:
                raise LenientError(f"no key at {self.at}")
            self.skip()
            if self.ended or isinstance(key, Partial):
                break
            if self.text[self.at] not in ":=":
                raise LenientError(f"no colon at {self.at}")
            self.at += 1
            result[key] = self.value(depth + 1)
        return result

    def items(self, depth: int) -> list[Any]:
        self.at += 1
        result = []
        while self.more("]"):
            result.append(self.value(depth + 1))
        return result

    def more(self, close: str) -> bool:
        """Whether another member follows; steps over commas, and over the closing bracket."""
        self.skip()
        while not self.ended and self.text[self.at] in ",;":
            self.at += 1
            self.skip()
        if self.ended:
            return False
        if self.text[self.at] == close:
            self.at += 1
            return False
        return True

    def skip(self) -> None:
        if found := _SPACE.match(self.text, self.at):
            self.at = found.end()

    @property
    def ended(self) -> bool:
        return self.at >= len(self.text)

    def quote(self) -> str:
        return next((mark for mark in _QUOTES if self.text.startswith(mark, self.at)), "")

    def string(self) -> str | Partial:
        opening = self.quote()
        # `""` is an empty string, unless a third mark follows.
        closing, plain = _QUOTES[opening], _PLAIN[_QUOTES[opening]]
        self.at += len(opening)
        parts: list[str] = []
        while not self.ended:
            if self.text.startswith(closing, self.at):
                self.at += len(closing)
                return "".join(parts)
            if found := plain.match(self.text, self.at):
                parts.append(found.group())
                self.at = found.end()
            elif self.text[self.at] == "\\" and self.at + 1 < len(self.text):
                parts.append(self.escape())
            else:
                parts.append(self.text[self.at])
                self.at += 1
        return Partial("".join(parts))

    def escape(self) -> str:
        mark = self.text[self.at + 1]
        digits = self.text[self.at + 2 : self.at + 6]
        if mark == "u" and re.fullmatch(r"[0-9a-fA-F]{4}", digits):
            self.at += 6
            return chr(int(digits, 16)).encode("utf-8", "replace").decode()
        self.at += 2
        return _ESCAPES.get(mark, mark)
