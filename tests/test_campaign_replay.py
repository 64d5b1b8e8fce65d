"""What was paid for once is not paid for again: chats cut off by a kill, and whole campaigns replayed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from campaign_fakes import ANSWER, FakeEvaluator, config

from vortexlab.agent import assemble
from vortexlab.agent.campaign import Campaign
from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.proposers import endpoint
from vortexlab.agent.proposers.endpoint import Call, Completion
from vortexlab.agent.proposers.models import LLMConfig, ModelConfig
from vortexlab.agent.run import Run
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.verdict import Verdict


class Killed(BaseException):
    """Ends the controller where it stands, as a signal would."""


class Model:
    """An endpoint that counts its calls: prose first, then a program; dies at call number `dies`."""

    label = "live"

    def __init__(self, dies: int = 0):
        self.calls, self.dies = 0, dies

    def paid(self, call: Call) -> bool:
        return False

    def wait(self, seconds: float) -> None:
        raise AssertionError("nothing failed")

    def complete(self, call: Call) -> Completion:
        request = call.request
        self.calls += 1
        if self.calls == self.dies:
            raise Killed
        if len(request["messages"]) == 2:
            return Completion("let me think", (8_000, 4))
        return Completion(f"```python{ANSWER.format(n=request['seed'] % 97 + 4)}```", (8_000, 200))


def settings(runs: Path, calls: int = 50, **changes: Any) -> CampaignConfig:
    model = LLMConfig((ModelConfig("scripted"),), calls=calls, repairs=1)
    return config(
        runs, evaluations=8, proposers=("llm",), seeds=("dense", "quest"), budget_points=(), structure_share=1.0,
        llm=model, **changes,
    )  # fmt: skip


def test_a_chat_that_a_kill_cut_off_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Model()
    monkeypatch.setattr(endpoint, "OpenAIEndpoint", lambda config: alone)
    Campaign(settings(tmp_path / "alone"), evaluator=FakeEvaluator()).run()
    one = Run.open("run", tmp_path / "alone")
    assert one.progress().calls == alone.calls and one.progress().tokens >= 8_000 * alone.calls

    dying = Model(dies=4)  # the repair of the second chat
    monkeypatch.setattr(endpoint, "OpenAIEndpoint", lambda config: dying)
    with pytest.raises(Killed):
        # With exactly the calls that the other one needed and the one that the kill cuts off, which may be billed: what
        # was paid before the kill must not count twice.
        Campaign(settings(tmp_path / "killed", calls=alone.calls + 1), evaluator=FakeEvaluator()).run()
    cut_off = Run.open("run", tmp_path / "killed")
    assert cut_off.progress().calls == dying.calls
    again = Model()
    monkeypatch.setattr(endpoint, "OpenAIEndpoint", lambda config: again)
    Campaign.resume("run", tmp_path / "killed", evaluator=FakeEvaluator()).run()
    other = Run.open("run", tmp_path / "killed")
    assert [t.proposal for t in other.trials] == [t.proposal for t in one.trials]
    assert dying.calls - 1 + again.calls == alone.calls
    lost = [event.data["tokens"] for event in other.events("reserved")][dying.calls - 1]
    assert other.progress().tokens == one.progress().tokens + lost and other.progress().calls == alone.calls + 1
    keys = [event.data["key"] for event in other.events("exchange")]
    assert keys == [event.data["key"] for event in one.events("exchange")]


class Measured(FakeEvaluator):
    """Never measures the same twice, as a real clock."""

    count = 0

    def evaluate(self, source: str, knobs: dict[str, Any] | None = None, *, fidelity: str = "full") -> Verdict:
        Measured.count += 1
        verdict = super().evaluate(source, knobs, fidelity=fidelity)
        return replace(verdict, seconds=1.0 + Measured.count / 7, conditions={"device": "cpu", "speed": "measured"})


def test_a_replay_reproduces_a_measured_campaign_without_calls_or_measurements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "OpenAIEndpoint", lambda config: Model())
    Campaign(settings(tmp_path), evaluator=Measured()).run()

    def refuse(config: ModelConfig) -> Model:
        raise AssertionError("a replay must not make an endpoint")

    monkeypatch.setattr(endpoint, "OpenAIEndpoint", refuse)
    idle = Measured()
    Campaign(settings(tmp_path, name="again", replay="run"), evaluator=idle).run()
    live, again = Run.open("run", tmp_path), Run.open("again", tmp_path)
    assert again.leaderboard().to_json() == {**live.leaderboard().to_json(), "run": "again"}
    assert not idle.calls
    assert {event.data["from_run"] for event in again.events("verdict")} == {"run"}


def test_a_replay_under_other_conditions_measures_for_itself(tmp_path: Path) -> None:
    Campaign(config(tmp_path, evaluations=4), evaluator=FakeEvaluator()).run()
    elsewhere = FakeEvaluator(environment="elsewhere")
    Campaign(config(tmp_path, name="again", evaluations=4, replay="run"), evaluator=elsewhere).run()
    assert len(elsewhere.calls) == 4
    with pytest.raises(VortexError, match="there is no run 'gone'"):
        Campaign(config(tmp_path, name="third", replay="gone"), evaluator=FakeEvaluator()).run()


def test_the_task_tells_the_conditions() -> None:
    text = assemble.task_text(CampaignConfig(name="x"))
    assert "measured on cpu" in text and "4096 tokens" in text
