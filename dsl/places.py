"""Where in a text something stands, and findings on their way to the reader."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from vortexlab.dsl.errors import Diagnostic

T = TypeVar("T")


class Finding(Exception):
    """One diagnostic on its way to the parser, which collects them."""

    def __init__(self, diagnostic: Diagnostic):
        super().__init__(str(diagnostic))
        self.diagnostic = diagnostic


@dataclass(frozen=True)
class Place:
    line: int
    column: int

    def error(self, code: str, message: str, *, found: str, expected: str, hint: str) -> Finding:
        return Finding(Diagnostic(code, message, self.line, self.column, found, expected, hint))


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
