"""Wrong programs: what is found, where, in which words, and that the hint leads to a program."""

from __future__ import annotations

import ast
import difflib
import json
import re
from pathlib import Path

import pytest
from catalogue import FOLDER, Wrong, page, wrong_programs
from face_fixtures import vortex
from hostile_texts import HOSTILE
from test_dsl_diagnostics import CASES

from vortexlab.dsl import check, parse
from vortexlab.dsl.codes import CODES, WARNING_CODES
from vortexlab.dsl.errors import Diagnostic

CATALOGUE = wrong_programs()
LONGEST = 300  #: characters of a finding as one line
every = pytest.mark.parametrize("wrong", CATALOGUE, ids=[wrong.name for wrong in CATALOGUE])


@every
def test_what_is_wrong_is_found_and_nothing_else(wrong: Wrong) -> None:
    assert sorted((f.code, f.line, f.column) for f in wrong.found) == sorted(wrong.findings)
    finding = wrong.finding
    assert wrong.says in f"{finding.message}; found {finding.found}"
    assert wrong.hint in f"{finding.hint}; expected {finding.expected}"


@every
def test_the_hint_leads_to_a_program_without_findings(wrong: Wrong) -> None:
    assert wrong.fixes and check(wrong.fixed)[1] == []
    assert parse(wrong.fixed).output is not None


GUESSED = [wrong for wrong in CATALOGUE if wrong.finding.hint.startswith("did you mean")]


@pytest.mark.parametrize("wrong", GUESSED, ids=[wrong.name for wrong in GUESSED])
def test_the_name_that_is_guessed_is_the_one(wrong: Wrong) -> None:
    finding = wrong.finding
    (guess,) = re.fullmatch(r"did you mean (\w+)\?", finding.hint).groups()  # type: ignore[union-attr]
    (meant,) = difflib.get_close_matches(guess, re.findall(r"\w+", finding.found), 1)
    lines = wrong.text.split("\n")
    lines[finding.line - 1] = re.sub(rf"\b{meant}\b", guess, lines[finding.line - 1])
    found, findings = check("\n".join(lines))
    assert found is not None and findings == []


def test_every_code_has_a_wrong_program() -> None:
    """Texts that are too long or cannot be seen are made by the tests instead of standing in files."""
    in_files = {wrong.code for wrong in CATALOGUE}
    made = {hostile.code for hostile in HOSTILE if hostile.code}
    assert set(CODES) - in_files - made == set()
    assert set(CODES) - in_files < made
    assert len(CATALOGUE) >= 90


def test_files_are_small_and_say_what_is_wrong() -> None:
    for wrong in CATALOGUE:
        assert len(wrong.lines) < 30, wrong.name
        assert re.match(r"# [\w+-].*\.", wrong.text), wrong.name
        warns = wrong.finding.severity == "warning"
        assert wrong.lines[0].endswith("(warning).") == warns and warns >= (wrong.code in WARNING_CODES), wrong.name


#: Python's names of its own syntax, and what its objects look like in print.
_INTERNAL = re.compile(r"<(class|ast|function|object|vortex)|0x[0-9a-f]{6}|object at|Traceback|lambda at|"
                       r"\b(NoneType|KnobRef|Size|Value|Type|Place|Node|Fraction|Text|Deferred|Record)\(")  # fmt: skip
_SYNTAX = {name for name in vars(ast) if name[0].isupper()} - {"Name", "List", "Set"}


def all_findings() -> list[Diagnostic]:
    texts = [wrong.text for wrong in CATALOGUE] + [hostile.text() for hostile in HOSTILE]
    return [f for text in [*texts, *(marked.replace("‹", "") for _, marked in CASES)] for f in check(text)[1]]


def test_findings_are_short_lines_of_plain_words() -> None:
    for finding in all_findings():
        line = str(finding)
        assert len(line) <= LONGEST and "\n" not in line and line.isprintable(), line
        assert not _INTERNAL.search(line), line
        assert finding.found not in _SYNTAX and finding.hint, line
        assert finding.severity == "warning" or (finding.found and finding.expected), line


@every
def test_the_command_line_gives_the_same_as_data(wrong: Wrong) -> None:
    file = FOLDER / f"{wrong.name}.py"
    done = vortex("check", str(file), "--json", "--target", "none", "--lengths", "4096", "--predict-for", "h200")
    given = json.loads(done.out)
    assert [Diagnostic(**item) for item in given["diagnostics"]] == wrong.found
    refused = any(f.severity == "error" for f in wrong.found)
    assert given["ok"] is not refused and done.status == (2 if refused else 0)


def test_the_page_of_diagnostics_is_current(repo_root: Path) -> None:
    """`python tests/catalogue.py > docs/diagnostics.md` mends this."""
    written = (repo_root / "docs" / "diagnostics.md").read_text(encoding="utf-8")
    assert written == page()
    assert re.findall(r"^### `([a-z-]+)`$", written, re.MULTILINE) == list(CODES)
