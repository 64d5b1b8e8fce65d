"""Nights that go wrong: endpoints of language models that are down, and come back.

Each ends in a state from which `--resume` goes on to the campaign that nothing had happened to.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from campaign_fakes import ANSWER, FakeEvaluator, config
from llm_server import serving
from nights import whole

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.proposers import endpoint as endpoints
from vortexlab.agent.proposers.endpoint import Call, Completion, EndpointError
from vortexlab.agent.proposers.llm import TRIES
from vortexlab.agent.proposers.models import LLMConfig, ModelConfig
from vortexlab.agent.run import Run
from vortexlab.agent.slots import _BREAKER, _COOL_DOWN, _DOUBLINGS
from vortexlab.evaluator.verdict import Verdict

BEGIN, HALF_AN_HOUR = 600.0, 1800.0  # of the outage, in seconds of a clock of its own


class Killed(BaseException):
    """Ends the controller where it stands."""


@dataclass
class Night:
    """A clock that evaluations (`seconds` each), answers and pauses move on, and what happens by it."""

    seconds: float = 60.0
    now: float = 0.0
    dies: float = float("inf")
    asked: list[float] = field(default_factory=list)

    @property
    def down(self) -> bool:
        return BEGIN <= self.now < BEGIN + HALF_AN_HOUR

    def during(self) -> list[float]:
        return [when for when in self.asked if BEGIN <= when < BEGIN + HALF_AN_HOUR]


class Timed(FakeEvaluator):
    def __init__(self, night: Night, then: Callable[[], object] = lambda: None):
        super().__init__()
        self.night, self.then = night, then

    def evaluate(self, source: str, knobs: dict[str, Any] | None = None, *, fidelity: str = "full") -> Verdict:
        self.night.now += self.night.seconds
        self.then()
        if self.night.now >= self.night.dies:
            self.night.dies = float("inf")
            raise Killed
        return super().evaluate(source, knobs, fidelity=fidelity)


#: How an endpoint is down: the kind of its errors, whether it may charge for them, seconds until each.
DOWN = {"unreachable": ("broken", False, 0.1), "overloaded": ("busy", True, 0.1), "silent": ("timeout", True, None)}


@dataclass
class Model:
    night: Night
    trouble: tuple[str, bool, float | None]
    label = "live"

    def paid(self, call: Call) -> bool:
        return False

    def wait(self, seconds: float) -> None:
        self.night.now += seconds

    def complete(self, call: Call) -> Completion:
        kind, charged, after = self.trouble
        self.night.asked.append(self.night.now)
        if self.night.down:
            seconds = call.seconds if after is None else after
            self.night.now += seconds
            raise EndpointError("the endpoint is down", kind, charged=charged, seconds=seconds)
        self.night.now += 5
        number = call.request["seed"] % 497 + 4
        return Completion(f"```python{ANSWER.format(n=number)}```", (8_000, 200), seconds=5.0)


def guided(runs: Path, evaluations: int, model: ModelConfig | None = None) -> CampaignConfig:
    priced = model or ModelConfig("scripted", input_price=1.0, output_price=4.0)
    return config(
        runs, evaluations=evaluations, proposers=("llm",), seeds=("dense", "quest"), budget_points=(),
        structure_share=1.0, llm=LLMConfig((priced,), calls=2000, tokens=10**9, money=500.0, repairs=1),
    )  # fmt: skip


def most_slots(slots: int) -> int:
    """How many of so many slots in a row the breaker gives to a model that fails every time."""
    count, slot = 0, 0
    while slot < slots:
        count += 1
        slot += 1 if count < _BREAKER else _COOL_DOWN * 2 ** min(count - _BREAKER, _DOUBLINGS)
    return count


def test_the_bound_of_calls_in_half_an_hour() -> None:
    assert [most_slots(slots) for slots in (30, 180, 1800)] == [4, 7, 17]


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("trouble", DOWN)
@pytest.mark.parametrize("seconds", [60.0, pytest.param(20.0, marks=pytest.mark.slow)])
def test_an_endpoint_that_is_down_for_half_an_hour_costs_little_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str, killed: bool, seconds: float
) -> None:
    night = Night(seconds, dies=BEGIN + HALF_AN_HOUR / 2 if killed else float("inf"))
    monkeypatch.setattr(endpoints, "OpenAIEndpoint", lambda config: Model(night, DOWN[trouble]))
    evaluations = int((BEGIN + 3 * HALF_AN_HOUR) / seconds)
    campaign = Campaign(guided(tmp_path, evaluations), evaluator=Timed(night))
    if killed:
        with pytest.raises(Killed):
            campaign.run()
        assert Run.open("run", tmp_path).state == "interrupted"
        campaign = Campaign.resume("run", tmp_path, evaluator=Timed(night))
    assert campaign.run().reason == f"the budget is spent: {evaluations} evaluations"

    run, sessions = whole(tmp_path / "run"), 2 if killed else 1
    kind, charged, _ = DOWN[trouble]
    tries = 1 if kind == "timeout" else TRIES  # a call that took all of a slot's time is not made again
    failed = [event.data for event in run.events("exchange") if event.data["error"]]
    assert 0 < len(failed) == len(night.during()) <= sessions * tries * most_slots(int(HALF_AN_HOUR / seconds))
    paid = sum(item["money"] for item in failed)
    ceiling = max(event.data["money"] for event in run.events("reserved"))
    assert paid <= len(failed) * ceiling if charged else paid == 0  # who may have charged is taken to have
    assert not run.history.stopped() and len(run.history.failures) == len(failed) / tries
    lost = {failure["slot"] for failure in run.history.failures}
    assert {run.trials[slot].arm.proposer for slot in lost} <= {"grammar", "knobs"}
    after = [t for t in run.trials if t.slot > max(lost) and t.arm.proposer == "llm:scripted"]
    assert len(after) > 5 and any(trial.point for trial in after)
    # As many slots again as the outage took, at most twice, pass until it is asked again.
    assert after[0].slot - max(lost) <= 2 * HALF_AN_HOUR / seconds


@pytest.mark.parametrize("killed", [False, True])
def test_a_server_that_goes_away_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool) -> None:
    """The real client: refused connections are no time, no tokens and no money."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    night = Night(dies=BEGIN + HALF_AN_HOUR / 2 if killed else float("inf"))
    monkeypatch.setattr(endpoints.OpenAIEndpoint, "wait", lambda _, seconds: setattr(night, "now", night.now + seconds))
    replies = [f"```python{ANSWER.format(n=number)}```" for number in range(4, 150)]
    with ExitStack() as up:
        first = up.enter_context(serving(replies))
        port, again = int(first.url.split(":")[2].split("/")[0]), []

        def then() -> None:
            if night.down and not again:
                up.close()
                again.append(None)
            elif night.now >= BEGIN + HALF_AN_HOUR and again == [None]:
                again[0] = up.enter_context(serving(replies[100:], port=port))

        settings = guided(tmp_path, 70, ModelConfig("m", base_url=first.url, input_price=1.0, output_price=4.0))
        campaign = Campaign(settings, evaluator=Timed(night, then))
        if killed:
            with pytest.raises(Killed):
                campaign.run()
            campaign = Campaign.resume("run", tmp_path, evaluator=Timed(night, then))
        assert campaign.run().state.evaluations == 70
        run = whole(tmp_path / "run")
        exchanges = [event.data for event in run.events("exchange")]
        failed = [item for item in exchanges if item["error"]]
        assert 0 < len(failed) <= (2 if killed else 1) * TRIES * most_slots(30)
        assert {(item["tokens"], item["money"]) for item in failed} == {(0, 0.0)}
        assert all("cannot be reached" in item["error"] for item in failed)
        assert len(first.requests) > 2 and len(again[0].requests) > 5, "asked before and after"
        assert len(exchanges) - len(failed) == len(first.requests) + len(again[0].requests)
