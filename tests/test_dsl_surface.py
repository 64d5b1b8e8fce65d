"""The words that a program file imports: known to editors, refused when somebody runs the file."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from vortexlab import dsl
from vortexlab.dsl import surface
from vortexlab.dsl.errors import ProgramError, VortexError
from vortexlab.dsl.graph import RESERVED_AXES
from vortexlab.dsl.words import FUNCTIONS
from vortexlab.search_spaces import seeds

BUILTIN = {"abs", "float", "max", "min", "dict"}


def test_every_word_of_the_language_is_there() -> None:
    assert set(FUNCTIONS) - BUILTIN | set(RESERVED_AXES) | {"program", "knob"} <= set(surface.WORDS)
    assert set(dsl.__all__) == set(surface.WORDS)
    assert all(getattr(dsl, name).__doc__ for name in surface.WORDS)
    for name in ("nothing", "_nothing"):
        with pytest.raises(AttributeError, match=f"'vortexlab.dsl' has no attribute '{name}'"):
            getattr(dsl, name)


def test_an_outline_tells_the_knobs_and_what_is_none_is_refused() -> None:
    text = "@program(page=16)\nclass P:\n    n = knob.int(1, 9, default=3)\n\n    def select(score): return nonsense\n"
    assert list(dsl.declared_knobs(text)) == ["n"]
    for wrong in ("x = 1", "class", "\0"):
        with pytest.raises(ProgramError):
            dsl.declared_knobs(wrong)


@pytest.mark.parametrize("name", list(seeds()))
def test_an_editor_knows_every_name_of_the_seeds(name: str) -> None:
    tree = ast.parse(seeds()[name])
    assigned = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    assigned |= {a.arg for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) for a in n.args.args}
    read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    assert read <= assigned | set(surface.WORDS) | BUILTIN


@pytest.mark.parametrize("use", [lambda w: w(3), lambda w: w.int, lambda w: ~w, lambda w: w | w, lambda w: w - w])
def test_a_word_says_what_it_is_when_it_is_used(use) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(VortexError, match="programs are read, not run"):
        use(surface.knob)


def test_running_a_program_file_says_so(tmp_path: Path, repo_root: Path) -> None:
    path = tmp_path / "quest.py"
    path.write_text(seeds()["quest"])
    result = subprocess.run([sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    assert "programs are read, not run" in result.stderr.strip().split("\n")[-1]
