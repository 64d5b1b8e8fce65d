"""Texts made to be expensive or deceptive: refused, or accepted where harmless, in a clear line and little time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from face_fixtures import vortex
from hostile_texts import HOSTILE, Hostile

from vortexlab.dsl import check

#: A reading takes some milliseconds; this catches what grows with the square of a text or worse.
CPU_SECONDS = 2.0


@pytest.mark.parametrize("hostile", HOSTILE, ids=[hostile.name for hostile in HOSTILE])
def test_hostile_text(hostile: Hostile) -> None:
    text = hostile.text()
    start = time.process_time()
    found, findings = check(text)
    spent = time.process_time() - start
    assert spent < CPU_SECONDS
    if hostile.code is None:
        assert found is not None and findings == []
        return
    finding = next(f for f in findings if f.code == hostile.code)
    assert (found is None) == (finding.severity == "error")
    assert hostile.says in str(finding)
    assert str(finding).isprintable() and len(str(finding)) <= 300
    assert len(findings) <= 400


@pytest.mark.parametrize("hostile", [h for h in HOSTILE if h.code], ids=[h.name for h in HOSTILE if h.code])
def test_hostile_files_end_the_command_line_with_one_line(hostile: Hostile, tmp_path: Path) -> None:
    """A file is read no further than a program may be long; what is no text at all is said to be none."""
    file = tmp_path / "program.py"
    file.write_bytes(hostile.text().encode("utf-8", "surrogatepass"))
    done = vortex("check", str(file), "--target", "none", "--lengths", "4096", "--predict-for", "h200")
    printed = done.out + done.err
    assert "Traceback" not in printed and done.status in (0, 2)
    assert all(char.isprintable() or char == "\n" for char in printed)
