"""What was written from the prompt alone: most programs are right at the first try, all after one repair."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from vortexlab import dsl
from vortexlab.agent import assemble
from vortexlab.agent.config import CampaignConfig
from vortexlab.dsl.ir import Static
from vortexlab.evaluator import numerics

FOLDER = Path(__file__).parent / "prompt_replies"
FIRST = sorted(path for path in FOLDER.glob("*.json") if "repaired" not in path.stem)
#: Of the shipped model.
STATIC = Static(kv_heads=2, group=2, head_dim=64, scale=0.125, layers=6)


@cache
def _fault(path: Path) -> str:
    """Why a reply's program would be stopped by the first two gates; empty if it would not."""
    try:
        program = dsl.parse(json.loads(path.read_text())["program"])
        return str(numerics.check(program.bind(dict(program.defaults)), STATIC, "cpu", 1)["failure"])
    except dsl.ProgramError as error:
        return str(error)


def test_most_are_right_at_the_first_try() -> None:
    assert len(FIRST) == 20
    wrong = {path.stem: fault for path in FIRST if (fault := _fault(path))}
    assert set(wrong) == {"09", "10"} and all("does not lie inside channel" in fault for fault in wrong.values())


def test_all_are_right_after_one_repair() -> None:
    assert [_fault(FOLDER / f"{name}-repaired.json") for name in ("09", "10")] == ["", ""]


def test_they_differ_in_structure() -> None:
    texts = [json.loads(path.read_text())["program"] for path in FIRST]
    assert len({dsl.structure_hash(dsl.parse(text)) for text in texts}) == 20


def test_the_prompt_names_the_shapes_of_the_model_that_accuracy_is_measured_on() -> None:
    text = assemble.hardware_text(CampaignConfig())
    assert "a model of 6 layers, 2 KV heads, 2 query heads for each, 64 channels" in text
    assert "128 channels" in text, "those of the speed gate"
