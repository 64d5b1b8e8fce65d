"""The catalogue of wrong programs: reads tests/wrong_programs, and writes docs/diagnostics.md from it.

A file holds one wrong program and, in the comments after it, what is found: the code with its place, essential words of
message and hint, further findings that follow from the first, and the lines that mend the program. ``# fix 9: text``
replaces line 9; several such lines replace it by several, and one without text removes it.

    python tests/catalogue.py > docs/diagnostics.md
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import dedent

from hostile_texts import HOSTILE

from vortexlab.dsl import check, codes
from vortexlab.dsl.errors import Diagnostic

FOLDER = Path(__file__).parent / "wrong_programs"
_FINDING = re.compile(r"# finding: ([a-z-]+) at (\d+):(\d+)")
_FIX = re.compile(r"# fix (\d+):(?: (.*))?")
_FAMILIES = {
    "The text": (codes.TEXT_CODES, "What is checked before the text meets a parser, and by it."),
    "The shape of a file": (codes.SHAPE_CODES, "The class, its declarations and its methods."),
    "Expressions and what methods return": (codes.EXPRESSION_CODES, "What stands in methods."),
    "Warnings": (codes.WARNING_CODES, "Legal, and probably not meant. They do not refuse a program."),
}
_HEAD = """# Diagnostics

Every finding about a program has a code that keeps its meaning between versions, a line and a column from 1, what was
found, what was expected and a hint. `vortex check FILE` prints them, `vortex check FILE --json` gives them as data
under `diagnostics`. Errors refuse a program, warnings do not. Reading stops after twenty findings of one method.

Each code is shown with one wrong program, what is said about it, and the lines that mend it. All wrong programs stand
in `tests/wrong_programs`, where tests hold them to their findings.
"""


@dataclass(frozen=True)
class Wrong:
    """One wrong program. `findings` are (code, line, column), the one that the file is about first."""

    name: str
    text: str
    findings: tuple[tuple[str, int, int], ...]
    says: str
    hint: str
    fixes: tuple[tuple[int, tuple[str, ...]], ...]

    @staticmethod
    def read(path: Path) -> Wrong:
        text = path.read_text(encoding="utf-8")
        lines = text.split("\n")
        start = next(i for i, line in enumerate(lines) if _FINDING.fullmatch(line))
        notes = [line for line in lines[start:] if line]
        found = [match for match in map(_FINDING.fullmatch, notes) if match]
        fixes: dict[int, list[str]] = {}
        for match in filter(None, map(_FIX.fullmatch, notes)):
            fixes.setdefault(int(match[1]), []).append(match[2] or "")
        (says,) = (line.removeprefix("# says: ") for line in notes if line.startswith("# says: "))
        (hint,) = (line.removeprefix("# hint: ") for line in notes if line.startswith("# hint: "))
        assert len(found) + 2 + sum(map(len, fixes.values())) == len(notes), f"{path}: a line that says nothing"
        return Wrong(
            path.relative_to(FOLDER).with_suffix("").as_posix() if path.is_relative_to(FOLDER) else path.stem,
            text,
            tuple((match[1], int(match[2]), int(match[3])) for match in found),
            says,
            hint,
            tuple((number, tuple(new)) for number, new in fixes.items()),
        )

    @property
    def code(self) -> str:
        return self.findings[0][0]

    @cached_property
    def found(self) -> list[Diagnostic]:
        return check(self.text)[1]

    @property
    def finding(self) -> Diagnostic:
        """What is found at the place that the file is about."""
        return next(f for f in self.found if (f.code, f.line, f.column) == self.findings[0])

    @property
    def lines(self) -> list[str]:
        """The program without the comments about it."""
        return self.text[: self.text.index("\n# finding:")].split("\n")[:-1]

    @property
    def fixed(self) -> str:
        """The program as its hint mends it."""
        fixes = dict(self.fixes)
        made: list[str] = []
        for number, line in enumerate(self.lines, 1):
            made += [] if fixes.get(number) == ("",) else fixes.get(number, (line,))
        return "\n".join(made) + "\n"


def wrong_programs() -> list[Wrong]:
    return [Wrong.read(path) for path in sorted(FOLDER.rglob("*.py"))]


def page() -> str:
    """docs/diagnostics.md."""
    examples: dict[str, Wrong] = {}
    for wrong in wrong_programs():
        examples.setdefault(wrong.code, wrong)
    parts = [_HEAD]
    for title, (family, about) in _FAMILIES.items():
        parts.append(f"## {title}\n\n{about}\n")
        for code, says in family.items():
            parts.append(_entry(code, says.removesuffix(" (warning)"), examples.get(code)))
    return "\n".join(parts)


def _entry(code: str, says: str, wrong: Wrong | None) -> str:
    if wrong is None:
        hostile = next(hostile for hostile in HOSTILE if hostile.code == code)
        finding = next(f for f in check(hostile.text())[1] if f.code == code)
        return f"### `{code}`\n\n{says[0].upper()}{says[1:]}, such as {hostile.name}:\n\n{_said(finding)}\n"
    shown = sorted({wrong.finding.line, *(number for number, _ in wrong.fixes)})
    before = [(number, [wrong.lines[number - 1]]) for number in shown]
    after = [(number, list(new)) for number, new in wrong.fixes]
    mends = any(map(any, dict(after).values()))
    mended = f"\n```python\n{_block(after)}\n```\n" if mends else "\nThe line is removed.\n"
    return (
        f"### `{code}`\n\n{says[0].upper()}{says[1:]} (`{wrong.name}.py`):\n\n```python\n{_block(before)}\n```\n\n"
        f"{_said(wrong.finding)}\n{mended}"
    )


def _block(lines: list[tuple[int, list[str]]]) -> str:
    """Lines by number: each run of them without the indentation that all of it has."""
    runs: list[list[str]] = []
    for i, (number, new) in enumerate(lines):
        if i and lines[i - 1][0] == number - 1:
            runs[-1] += new
        else:
            runs.append(list(new))
    return "\n".join(dedent("\n".join(run)) for run in runs).strip("\n")


def _said(finding: Diagnostic) -> str:
    """The line that `vortex check` prints, as a quotation."""
    return f"> `{str(finding).split(': ', 1)[1].replace('`', chr(39))}`"


if __name__ == "__main__":
    print(page(), end="")
