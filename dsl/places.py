"""Where in a text something stands, and findings on their way to the reader."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from vortexlab.dsl.errors import Diagnostic

T = TypeVar("T")
MAX_FINDINGS = 20  #: findings of one method, or of the class body, after which the rest of it is not read


class Finding(Exception):
    """One diagnostic on its way to the parser, which collects them."""

    def __init__(self, diagnostic: Diagnostic):
        super().__init__(str(diagnostic))
        self.diagnostic = diagnostic


def shortened(text: str, most: int = 140) -> str:
    """A text that stays readable whatever a program puts into it; lists lose their end."""
    if len(text) <= most:
        return text
    kept = text[:most].rpartition(", ")[0]
    return f"{kept}, ..." if kept else text[:most]


@dataclass(frozen=True)
class Place:
    line: int
    column: int

    def error(self, code: str, message: str, *, found: str, expected: str, hint: str) -> Finding:
        said = shortened(found, 48), shortened(expected), shortened(hint)
        return Finding(Diagnostic(code, message, self.line, self.column, *said))


@dataclass(frozen=True)
class Named:
    """A name, such as that of an axis, and where it is written."""

    name: str
    place: Place


def place_of(node: ast.AST) -> Place:
    return Place(getattr(node, "lineno", 1), getattr(node, "col_offset", 0) + 1)


class Findings(list[Diagnostic]):
    """Findings collected so far; `guard` runs a step and keeps what it raises, so that one reading reports several."""

    def guard(self, step: Callable[[], T]) -> T | None:
        try:
            return step()
        except Finding as finding:
            self.append(finding.diagnostic)
            return None
