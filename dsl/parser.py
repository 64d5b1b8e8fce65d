"""From a program's text to a checked `Program`.

The text is turned into a syntax tree under limits and evaluated by our own tracer; it is never run, imported or
evaluated by Python, whoever wrote it.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vortexlab.dsl.errors import Diagnostic, ProgramError, VortexError
from vortexlab.dsl.ir import Knob, Program
from vortexlab.dsl.limits import MAX_BYTES, syntax_tree
from vortexlab.dsl.outline import read_outline
from vortexlab.dsl.places import Findings
from vortexlab.dsl.reader import Reader


def parse(text: str) -> Program:
    """The program in `text`, its knobs unbound. Raises `ProgramError` with every finding."""
    program, findings = check(text)
    if program is None:
        raise ProgramError([f for f in findings if f.severity == "error"])
    return program


def load(path: str | Path) -> Program:
    """Parses a file. Raises `VortexError` when it cannot be read, `ProgramError` when it is no program."""
    return parse(read_text(path))


def read_text(path: str | Path) -> str:
    """The text of a program file. Raises `VortexError` when it cannot be read or is no text."""
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise VortexError(f"{path} is no file; give the path of a program file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise VortexError(f"cannot read {path}: {reason}; give the path of a program file") from None
    if len(data) > MAX_BYTES:
        raise VortexError(f"{path} is larger than {MAX_BYTES} bytes; give the path of a program file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise VortexError(f"{path} is not UTF-8 text (byte {error.start}); give the path of a program file") from None


def declared_knobs(text: str) -> Mapping[str, Knob]:
    """The knobs of a program's text, by name, without reading its methods. Raises `ProgramError` for what is no
    program's outline."""
    findings = Findings()
    outline = read_outline(text, syntax_tree(text), findings)
    if outline is None:
        raise ProgramError(list(findings))
    return outline.knobs


def check(text: str) -> tuple[Program | None, list[Diagnostic]]:
    """The program, or None, and every finding: errors first, then warnings, each in the order of the text."""
    try:
        tree = syntax_tree(text)
    except ProgramError as error:
        return None, list(error.diagnostics)
    findings = Findings()
    outline = read_outline(text, tree, findings)
    program = Reader(text, outline, findings).program() if outline is not None else None
    lines = text.split("\n")
    found = {_in_characters(finding, lines): None for finding in findings}
    return program, sorted(found, key=lambda f: (f.severity != "error", f.line, f.column))


def _in_characters(finding: Diagnostic, lines: list[str]) -> Diagnostic:
    """Python counts columns in bytes, editors in characters."""
    line = lines[finding.line - 1] if 0 < finding.line <= len(lines) else ""
    if line.isascii():
        return finding
    return replace(finding, column=len(line.encode()[: finding.column - 1].decode(errors="ignore")) + 1)
