"""`vortex search`, `eval`, `tell` and the Python interface, with an evaluator that needs no model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from campaign_fakes import FakeEvaluator
from face_fixtures import record, vortex

import vortexlab
from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.run import Run
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.verdict import Verdict
from vortexlab.settings import campaign_config, evaluation_config

PROGRAM = """
@program(page=16)
class Mine:
    recent = knob.int(1, 64, default=8)
    def select():
        return first(2) | last(recent)
"""


class Rejecting(FakeEvaluator):
    def evaluate(
        self, source: str, knobs: dict | None = None, *, fidelity: str = "full", parameters: Any = None
    ) -> Verdict:
        found = super().evaluate(source, knobs, fidelity=fidelity)
        return self._stopped(found, "rejected", "fidelity", "keeps 0.10 of the mass")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[EvaluationConfig]:
    """Replaces the evaluator; returns the configurations it was made with."""
    seen: list[EvaluationConfig] = []

    class Fake(FakeEvaluator):
        def __init__(self, config: EvaluationConfig):
            super().__init__()
            seen.append(config)

        def __enter__(self) -> Fake:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

    monkeypatch.setattr("vortexlab.evaluator.evaluator.Evaluator", Fake)
    return seen


def test_search_ends_with_what_is_new_and_what_it_beats(tmp_path: Path, made: list[EvaluationConfig]) -> None:
    done = vortex("search", "--name", "a", "--runs", tmp_path, "--evaluations", "14", "--seed", "3", "--device", "cpu",
                  "--lengths", "1k,2048", "--tasks", "needle", "--tasks", "chain", "--speed", "predicted")  # fmt: skip
    assert done.status == 0
    opened = Run.open("a", tmp_path)
    assert done.out.splitlines()[-1] == opened.leaderboard().closing_lines()[-1]
    assert f"vortex export {tmp_path / 'a'} ID" in done.out
    assert opened.config.seed == 3 and opened.config.evaluations == 14
    settings = made[0]
    assert settings == opened.config.evaluation
    assert (settings.lengths, settings.tasks, settings.speed) == ((1024, 2048), ("needle", "chain"), "predicted")
    progress = [line for line in done.err.splitlines() if "/14 evaluated" in line]
    phases = [line.split(": ")[-1].split()[0] for line in progress]
    assert phases == ["recorded"] * len(opened.trials) + ["bounding"] * 3 + ["finished"]


def test_search_goes_on_where_it_stood(tmp_path: Path, made: list[EvaluationConfig]) -> None:
    arguments = ("--runs", tmp_path, "--json")
    vortex("search", "--name", "whole", "--evaluations", "16", *arguments)
    vortex("search", "--name", "parts", "--evaluations", "12", *arguments)
    more = vortex("search", "--resume", "parts", "--evaluations", "16", *arguments).json("search")
    whole = Run.open("whole", tmp_path)
    assert [trial.hash for trial in Run.open("parts", tmp_path).trials] == [trial.hash for trial in whole.trials]
    assert [entry["id"] for entry in more["entries"]] == [entry.id for entry in whole.leaderboard().entries]
    assert more["closing"] == whole.leaderboard().closing_lines()
    assert vortex("search", "--resume", "latest", "--evaluations", "16", *arguments).json("search")["run"] == "parts"


def test_search_repeats_a_recorded_run(tmp_path: Path, made: list[EvaluationConfig]) -> None:
    vortex("search", "--name", "first", "--evaluations", "12", "--seed", "5", "--runs", tmp_path)
    again = vortex("search", "--replay", "first", "--name", "again", "--runs", tmp_path, "--json").json("search")
    assert again["run"] == "again"
    first, second = Run.open("first", tmp_path), Run.open("again", tmp_path)
    assert [trial.hash for trial in second.trials] == [trial.hash for trial in first.trials]
    assert second.config.seed == 5 and second.config.replay


def test_settings_that_contradict_are_refused(tmp_path: Path) -> None:
    record(tmp_path, "old", 2)
    for words, expected in (
        (("--resume", "old", "--seed", "4"), "--seed does not go with --resume"),
        (("--replay", "old", "--lengths", "1k"), "--lengths does not go with --replay"),
        (("--model", "some-model"), "add --proposer llm"),
        (("--proposer", "llm"), "give --model NAME"),
        (("--llm-calls", "3"), "add --proposer llm --model NAME"),
        (("--proposer", "tea leaves"), "'tea leaves' is not one of grammar, llm, handoff"),
        (("--evaluations", "0"), "evaluations must be at least 1"),
        (("--hours", "-1"), "hours must be above 0"),
        (("--device", "abacus"), "'abacus' is not one of auto, cpu, cuda"),
        (("--speed", "guessed"), "'guessed' is not one of measured, predicted"),
        (("--lengths", "many"), "--lengths needs whole numbers"),
        (("--name", "../elsewhere"), "run name '../elsewhere' is not usable"),
        (("--name", "old", "--seed", "1"), "run 'old' exists with other settings"),
    ):
        assert expected in vortex("search", "--runs", tmp_path, *words).complaint(), words
    assert sorted(item.name for item in tmp_path.iterdir()) == ["old"]


def test_tell_takes_a_reply_and_answers_by_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[EvaluationConfig]
) -> None:
    vortex("search", "--name", "asked", "--proposer", "handoff", "--evaluations", "40", "--runs", tmp_path)
    reply = tmp_path / "reply.md"
    reply.write_text(f"I think that this is fast:\n```python\n{PROGRAM}\n```\n")
    done = vortex("tell", "asked", reply, "--runs", tmp_path, "--label", "authored", "--json")
    found = done.json("tell")
    assert done.status == 0 and found["name"] == "Mine" and found["label"] == "authored"
    assert vortex("show", found["id"], "--runs", tmp_path, "--json").json("show") == found
    monkeypatch.setattr("vortexlab.evaluator.evaluator.Evaluator", lambda config: Rejecting())
    reply.write_text(PROGRAM.replace("first(2)", "first(3)"))
    rejected = vortex("tell", "asked", reply, "--runs", tmp_path)
    assert rejected.status == 1 and "rejected by gate fidelity" in rejected.out
    reply.write_text("a poem about pages")
    assert "reply" in vortex("tell", "asked", reply, "--runs", tmp_path).complaint()
    record(tmp_path, "spent", 3)
    reply.write_text(json.dumps({"program": PROGRAM, "hypothesis": "recency is enough"}))
    assert "raise it" in vortex("tell", "spent", reply, "--runs", tmp_path).complaint()


def test_eval_prints_the_verdict_and_answers_by_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[EvaluationConfig]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(PROGRAM)
    done = vortex("eval", file, "--knob", "recent=16", "--contexts", "3", "--device", "cpu", "--json")
    found = done.json("eval")["verdict"]
    assert done.status == 0 and found["knobs"] == {"recent": 16} and made[0].contexts == 3
    text = vortex("eval", file)
    assert text.status == 0 and "accepted" in text.out and "numerics" in text.out

    class Closing(Rejecting):
        def __enter__(self) -> Closing:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

    monkeypatch.setattr("vortexlab.evaluator.evaluator.Evaluator", lambda config: Closing())
    rejected = vortex("eval", file)
    assert rejected.status == 1 and "by gate fidelity: keeps 0.10 of the mass" in rejected.out


def test_published_programs_go_by_name_unless_a_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[EvaluationConfig]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = vortex("eval", "quest", "--knob", "budget=8", "--json").json("eval")
    assert found["verdict"]["program"] == "Quest" and found["verdict"]["knobs"]["budget"] == 8
    checked = vortex("check", "quest", "--target", "none", "--json")
    assert checked.status == 0 and checked.json("check")["published_as"] == "quest"
    (tmp_path / "quest").write_text(PROGRAM)
    assert vortex("eval", "quest", "--json").json("eval")["verdict"]["program"] == "Mine"


def test_search_and_load_run_from_python(tmp_path: Path, made: list[EvaluationConfig]) -> None:
    phases: list[str] = []
    run = vortexlab.search(
        name="script", runs=tmp_path, evaluations=12, lengths=(1024,), device="cpu",
        on_progress=lambda state: phases.append(state.phase),
    )  # fmt: skip
    assert made[0].lengths == (1024,) and phases[0] == "starting" and phases[-1] == "finished"
    table = vortexlab.load_run("script", tmp_path).to_pandas()
    assert list(table.id) == [trial.id for trial in run.trials] and len(table) == 12
    board = run.leaderboard()
    row = table.set_index("id").loc[board.entries[0].id]
    assert row.speedup == board.entries[0].speedup.value and row.on_frontier
    further = vortexlab.search(resume="script", runs=tmp_path, evaluations=13)
    assert len(further.trials) == 13
    with pytest.raises(VortexError, match="no run"):
        vortexlab.load_run("other", tmp_path)


def test_the_defaults_of_search_are_those_of_the_campaign(tmp_path: Path, made: list[EvaluationConfig]) -> None:
    config = campaign_config(device="cpu")
    assert config == CampaignConfig() and config.evaluation == evaluation_config(device="cpu")
    hours = campaign_config(hours=2.0)
    assert (hours.evaluations, hours.hours) == (None, 2.0)


def test_importing_the_package_and_printing_help_load_no_torch() -> None:
    code = (
        "import sys, vortexlab; assert not [m for m in sys.modules if m.startswith('vortexlab.')];"
        "vortexlab.search, vortexlab.load_run;"
        "from vortexlab.cli.main import run; assert run(['--help']) == 0 and run(['search', '--help']) == 0;"
        "heavy = {'torch', 'transformers', 'optuna', 'pandas', 'plotly', 'openai'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
