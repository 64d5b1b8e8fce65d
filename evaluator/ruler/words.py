"""The words and the prose that the families draw from; their origin is in `data/README.md`."""

from __future__ import annotations

import functools
import lzma
import re
import uuid
from pathlib import Path
from random import Random

_DATA = Path(__file__).resolve().parent / "data"


@functools.cache
def word_lists() -> dict[str, tuple[str, ...]]:
    """`adjectives`, `nouns` and `verbs`, each in alphabetical order."""
    found: dict[str, list[str]] = {}
    for line in (_DATA / "words.txt").read_text(encoding="ascii").splitlines():
        if line.startswith("["):
            kind = found.setdefault(line.strip("[]"), [])
        else:
            kind.append(line)
    return {name: tuple(words) for name, words in found.items()}


@functools.cache
def all_words() -> tuple[str, ...]:
    """Every word once, in alphabetical order."""
    return tuple(sorted({word for words in word_lists().values() for word in words}))


@functools.cache
def novel() -> str:
    """The haystack of prose unless the user gives another: one paragraph per line."""
    return lzma.decompress((_DATA / "pride_and_prejudice.txt.xz").read_bytes()).decode("ascii")


def sentences(text: str) -> list[str]:
    """Cut behind a full stop, question or exclamation mark (and closing quotes) that no lower case follows."""
    found, start = [], 0
    for match in re.finditer(r"[.!?][\"')\]]*\s+(?![a-z])", text):
        found.append(text[start : match.end()].rstrip())
        start = match.end()
    rest = text[start:].strip()
    return [*found, rest] if rest else found


def draw(kind: str, rng: Random) -> str:
    """A key or value: `words` (adjective-noun), `numbers` (seven digits) or `uuids`."""
    if kind == "words":
        lists = word_lists()
        return f"{rng.choice(lists['adjectives'])}-{rng.choice(lists['nouns'])}"
    if kind == "numbers":
        return str(rng.randint(10**6, 10**7 - 1))
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
