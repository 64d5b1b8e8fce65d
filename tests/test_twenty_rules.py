"""What a reader of the compact reference wrote at the first try still parses and computes what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from vortexlab import dsl
from vortexlab.dsl.ir import Static
from vortexlab.evaluator import numerics
from vortexlab.search_spaces.library import NAMES, load

FILES = sorted((Path(__file__).parent / "twenty_rules").glob("*.py"))
STATIC = Static(kv_heads=2, group=2, head_dim=64, scale=0.125, layers=6)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_program_written_from_the_reference_alone_is_right(file: Path) -> None:
    found = numerics.check(dsl.load(file).bind(), STATIC, "cpu", 1)
    assert found["failure"] == ""
    assert found["steps"] >= 8


def test_the_rules_are_twenty_and_published_nowhere() -> None:
    assert len(FILES) == 20
    published = {dsl.structure_hash(load(name)) for name in NAMES}
    assert not published & {dsl.structure_hash(dsl.load(file)) for file in FILES}
