"""Programs by their text. A proposal passes through several hands, and each of them reads it."""

from __future__ import annotations

import functools

from vortexlab.dsl import parse
from vortexlab.dsl.ir import Program


@functools.lru_cache(maxsize=1024)
def parsed(text: str) -> Program:
    """As `dsl.parse`, of whose last results it remembers some. Raises `ProgramError`."""
    return parse(text)
