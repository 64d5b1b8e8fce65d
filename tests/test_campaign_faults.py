"""Campaigns in which something beside the programs fails: the record, the workers, the timing of what people ask."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from campaign_fakes import ANSWER, FakeEvaluator, Threads, config

from vortexlab import settings
from vortexlab.agent import assemble, glance, requests, status
from vortexlab.agent.assemble import Recorder
from vortexlab.agent.budget import Budget
from vortexlab.agent.campaign import Campaign
from vortexlab.agent.proposers.base import Proposer
from vortexlab.agent.proposers.endpoint import Call, Completion
from vortexlab.agent.proposers.llm import LLMProposer
from vortexlab.agent.proposers.models import LLMConfig, ModelConfig
from vortexlab.agent.run import Run
from vortexlab.agent.slots import Slots
from vortexlab.agent.store import Store
from vortexlab.agent.trials import History
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.verdict import ERROR, Verdict

FULL = "the disk of it is full"


@dataclass
class Script:
    """An endpoint that answers with another program each time."""

    label = "authored"
    calls: int = 0

    def complete(self, call: Call) -> Completion:
        self.calls += 1
        reply = {"hypothesis": "h", "program": ANSWER.format(n=4 + self.calls), "predicted_effect": {}}
        return Completion(json.dumps(reply), (100, 100), "stop", 0.1)

    def paid(self, call: Call) -> bool:
        return False

    def wait(self, seconds: float) -> None:
        return


def _asking(settings_: Any, calls: int = 100) -> Callable[[Recorder, History], list[Proposer]]:
    model = ModelConfig("m", base_url="http://127.0.0.1:1/v1")

    def proposers(record: Recorder, history: History) -> list[Proposer]:
        exchange, reserve = partial(record, "exchange"), partial(record, "reserved")
        budget = Budget(calls, 10**9, spent=history.spent())
        briefing = assemble.briefing(settings_)
        return [LLMProposer(model, LLMConfig((model,)), briefing, exchange, budget, Script(), frozenset(), reserve)]

    return proposers


@pytest.mark.parametrize("kind", ["reserved", "exchange"])
def test_a_record_that_cannot_be_written_is_no_fault_of_a_proposer(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, full = Store.append, [True]

    def failing(self: Store, name: str, *rest: Any, **how: Any) -> Any:
        if name == kind and full and full.pop():  # a small event would fit again
            raise VortexError(FULL)
        return append(self, name, *rest, **how)

    made = config(tmp_path, evaluations=6, seeds=("dense", "quest"), budget_points=(), knob_share=0.0)
    monkeypatch.setattr(Store, "append", failing)
    with pytest.raises(VortexError, match=FULL):
        Campaign(made, evaluator=FakeEvaluator(), proposers=_asking(made)).run()
    before = Run.open("run", tmp_path)
    assert not before.history.failures and len(before.trials) == 2
    assert before.history.spent().calls == (kind == "exchange")  # which was sent, whatever became of it
    Campaign(before.config, evaluator=FakeEvaluator(), proposers=_asking(made)).run()
    after = Run.open("run", tmp_path)
    assert len(after.trials) == 6 and not after.history.failures
    answered = len(list(after.events("exchange")))
    assert answered and after.history.spent().calls == answered + (kind == "exchange")


def test_a_reservation_that_nothing_followed_counts_as_spent(tmp_path: Path) -> None:
    made = config(tmp_path, evaluations=3, seeds=("dense", "quest"), budget_points=())
    Campaign(made, evaluator=FakeEvaluator()).run()
    with Store.write(tmp_path / "run") as store:
        for slot in (3, 4):
            store.append("reserved", {"model": "m", "tokens": 7, "money": 1.0}, slot=slot)
    spent = Run.open("run", tmp_path).history.spent()
    assert (spent.calls, spent.tokens, spent.money) == (2, 14, 2.0)


def test_a_budget_of_the_command_takes_the_place_of_both_limits(tmp_path: Path) -> None:
    Campaign(config(tmp_path, evaluations=3), evaluator=FakeEvaluator()).run()
    later = Campaign.resume("run", tmp_path, hours=8.0, evaluator=FakeEvaluator()).config
    assert (later.evaluations, later.hours) == (None, 8.0)
    more = later.with_budget(evaluations=5)
    assert (more.evaluations, more.hours) == (5, None)
    assert later.with_budget().hours == 8.0


def test_a_replay_of_nothing_leaves_no_run_behind(tmp_path: Path) -> None:
    with pytest.raises(VortexError, match="there is no run 'nope'"):
        Campaign(config(tmp_path, replay="nope"), evaluator=FakeEvaluator()).run()
    assert not (tmp_path / "run").exists()


class Losing(FakeEvaluator):
    """Loses its worker over the programs of these numbers, counted over all of a campaign's sessions."""

    def __init__(self, lost: range):
        super().__init__()
        self._lost, self._seen = lost, 0

    def evaluate(self, source: str, knobs: dict[str, Any] | None = None, **others: Any) -> Verdict:
        found = super().evaluate(source, knobs, **others)
        self._seen += 1
        if self._seen not in self._lost:
            return found
        return Verdict(
            found.program, found.source_hash, found.structure, found.knobs, ERROR, reason="the worker was lost"
        )


def test_a_replay_loses_no_workers(tmp_path: Path) -> None:
    evaluator = Losing(range(4, 9))
    with pytest.raises(VortexError, match=r"5 evaluations in a row lost their worker \(last: the worker was lost"):
        Campaign(config(tmp_path, evaluations=12), evaluator=evaluator).run()
    Campaign.resume("run", tmp_path, evaluator=evaluator).run()
    run = Run.open("run", tmp_path)
    again = settings.replay_config(run.config, run.folder, name="again", runs=str(tmp_path))
    Campaign(again, evaluator=FakeEvaluator()).run()
    assert Run.open("again", tmp_path).leaderboard().entries == run.leaderboard().entries


def test_a_pause_keeps_the_status_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def other() -> None:
        """Somebody who asks for something in the pause, and looks whether the status is at hand after it."""
        _until(lambda: glance.status("run", tmp_path)["state"] == "paused")
        requests.pin("t0001", "run", tmp_path)
        _until(lambda: glance.status("run", tmp_path)["pinned"] == ["t0001"])
        _until(at_hand)
        seen.append(True)
        requests.resume("run", tmp_path)

    def at_hand() -> bool:
        with Store.read(tmp_path / "run") as store:
            return status.KEPT.load(tmp_path / "run", store.mark()) is not None

    class Pausing(FakeEvaluator):
        asked = 0

        def evaluate(self, *what: Any, **how: Any) -> Verdict:
            self.asked += 1
            if self.asked == 3:
                requests.pause("run", tmp_path)
                threading.Thread(target=other).start()
            return super().evaluate(*what, **how)

    Campaign(config(tmp_path, evaluations=5), evaluator=Pausing()).run()
    assert seen == [True]


def _until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_program_proposed_while_oracles_are_measured_has_its_slot(
    parallel: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposed = Slots.propose

    def nothing_left(self: Slots, history: History) -> Any:
        return proposed(self, history) if history.next_slot < 3 or history.asked else None

    monkeypatch.setattr(Slots, "propose", nothing_left)
    asked: list[str] = []

    def propose_one() -> None:
        if not asked:
            asked.append(requests.propose(ANSWER.format(n=7), "run", tmp_path).message)

    class Here(FakeEvaluator):
        def oracle(self, source: str, knobs: dict[str, Any]) -> None:
            propose_one()

    class There(Threads):
        def oracle(self, source: str, knobs: Any) -> Any:
            propose_one()
            return super().oracle(source, knobs)

    how: dict[str, Any] = {"evaluator": Here()} if parallel == 1 else {"pool": There(parallel)}
    summary = Campaign(config(tmp_path, evaluations=40, parallel=parallel), **how).run()
    run = Run.open("run", tmp_path)
    assert asked and len(run.trials) == 4 and run.trials[-1].proposal.source == ANSWER.format(n=7)
    assert summary.reason.startswith("nothing is left to try") and not run.status()["waiting"]
