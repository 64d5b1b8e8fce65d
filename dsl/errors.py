"""Errors that a user reads: one clear line that says what is wrong and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass


class VortexError(Exception):
    """Bad input. `str(error)` is the one line the user sees; the command line exits with status 2."""


def one_line(error: object, limit: int = 300) -> str:
    """What somebody else says, on one line of at most `limit` characters."""
    line = " ".join(str(error).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


@dataclass(frozen=True)
class Diagnostic:
    """One finding about a program's text, with everything needed to mend it.

    `line` and `column` count from 1, as editors do. `code` names the kind of finding (for example
    ``axis-missing``) and never changes meaning between versions.
    """

    code: str
    message: str
    line: int
    column: int
    found: str = ""
    expected: str = ""
    hint: str = ""
    severity: str = "error"

    def __str__(self) -> str:
        text = f"{self.line}:{self.column}: {self.severity}: {self.message} [{self.code}]"
        if self.found:
            text += f"; found {self.found}"
        if self.expected:
            text += f"; expected {self.expected}"
        if self.hint:
            text += f"; hint: {self.hint}"
        return text

    def to_json(self) -> dict[str, str | int]:
        return dict(self.__dict__)


class ProgramError(VortexError):
    """The text is no valid program. `diagnostics` holds every finding, the first one first."""

    def __init__(self, diagnostics: list[Diagnostic]):
        if not diagnostics:
            raise ValueError("a ProgramError needs at least one diagnostic")
        self.diagnostics = tuple(diagnostics)
        more = f" (and {len(diagnostics) - 1} more)" if len(diagnostics) > 1 else ""
        super().__init__(f"{diagnostics[0]}{more}")
