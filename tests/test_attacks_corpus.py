"""The corpus of attacks: every line has one, every one is stopped, and the document says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vortexlab.agent import attacks as campaign
from vortexlab.cli.main import run as vortex
from vortexlab.cli.schemas import OUTPUTS
from vortexlab.evaluator.attacks import corpus, measurements, texts
from vortexlab.evaluator.attacks.attack import LIMITED, Attack, found
from vortexlab.kernels.torch_executor import TorchExecutor

ALL = corpus.in_order((*corpus.ATTACKS, *campaign.ATTACKS))
QUICK = [attack for attack in ALL if attack.kind in ("text", "measurement", "campaign")]


def test_every_line_of_the_checklist_has_an_attack() -> None:
    lines = {attack.id for attack in ALL}
    assert lines == {f"A{n}" for n in range(1, 51)} | {f"S{n}" for n in range(1, 15)}
    assert len(ALL) >= 64 and len({attack.tries for attack in ALL}) >= 64


@pytest.mark.parametrize("attack", QUICK, ids=[f"{a.id} {a.tries}" for a in QUICK])
def test_an_attack_gets_its_verdict(attack: Attack) -> None:
    verdict, ways = found(attack, attack.run())
    assert verdict == attack.expected and ways >= 1


@pytest.mark.slow
def test_attacks_on_quality_get_their_verdicts() -> None:
    results = list(corpus.run([attack for attack in ALL if attack.kind == "quality"]))
    assert [(r.attack.id, r.found) for r in results if not r.stopped] == [] and len(results) >= 10


def test_an_honest_executor_and_an_honest_program_pass() -> None:
    """Or all of these would be stopped for nothing."""
    assert measurements.through_the_gates(TorchExecutor) == "accepted"
    assert measurements.through_the_gates(measurements._Timed) == "accepted"
    assert texts._refused(texts.program()) == "accepted"


def test_one_way_that_gets_through_is_the_verdict() -> None:
    attack = Attack("A1", "text", "", LIMITED, "", lambda: ())
    assert found(attack, [("a", LIMITED), ("b", "accepted"), ("c", LIMITED)]) == ("accepted (b)", 3)
    assert found(attack, [("a", LIMITED)]) == (LIMITED, 1)
    assert found(attack, []) == ("nothing was tried", 0), "an attack without a way shows nothing"


def test_an_attack_that_brings_the_evaluator_down_is_not_stopped() -> None:
    def failing() -> list[tuple[str, str]]:
        raise KeyError("bug")

    (result,) = corpus.run([Attack("A1", "text", "", LIMITED, "", failing)])
    assert not result.stopped and result.found.startswith("accepted: KeyError")


def test_the_document_has_the_table(repo_root: Path) -> None:
    assert corpus.table(ALL) in (repo_root / "docs" / "attacks.md").read_text()


def test_the_command_tells_and_judges(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert vortex(["attack", "--only", "a11", "--only", "A36", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    OUTPUTS["attack"].model_validate(printed)
    assert [row["id"] for row in printed["rows"]] == ["A11", "A36"] and printed["accepted"] == 0
    assert vortex(["attack", "--only", "A51"]) == 2
    assert "A51" in capsys.readouterr().err
    monkeypatch.setattr(measurements.AfterReturn, "cheat", lambda self, q, cache, lists, out: out)
    assert vortex(["attack", "--only", "A36"]) == 1, "the cheat is honest now, so it is accepted"
    assert "accepted (lazy)" in capsys.readouterr().out
