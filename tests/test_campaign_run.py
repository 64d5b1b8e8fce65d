"""A campaign from the first seed to the last slot, with an evaluator that costs nothing."""

from __future__ import annotations

import os
import random
import resource
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from campaign_fakes import FakeEvaluator, config, in_child

from vortexlab.agent.arms import Arm
from vortexlab.agent.campaign import Campaign
from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.progress import ProgressState
from vortexlab.agent.proposers.base import Member, Proposal, Proposer, ProposerError
from vortexlab.agent.proposers.grammar import GrammarProposer
from vortexlab.agent.run import Run
from vortexlab.agent.slots import seed_plan
from vortexlab.agent.store import Store
from vortexlab.agent.trials import KNOBS, SEED, History, Trial
from vortexlab.dsl import canonical_hash, parse
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.verdict import GATES, Estimate, GateResult, Verdict
from vortexlab.search_spaces.library import SEEDS, source


def story(run: Run) -> list[tuple[Any, ...]]:
    """What was tried, in order, without times."""
    return [(t.slot, t.arm, t.proposal.source, dict(t.knobs), t.hash, t.proposal.parents) for t in run.trials]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    runs = tmp_path_factory.mktemp("runs")
    Campaign(config(runs, evaluations=40), evaluator=FakeEvaluator()).run()
    return Run.open("run", runs)


def test_the_seeds_come_first_then_new_structures_and_new_knobs(finished: Run) -> None:
    trials = finished.trials
    assert [t.proposal.name for t in trials[: len(SEEDS)]] == [parse(source(name)).name for name in SEEDS]
    assert [t.arm.operator for t in trials if t.arm.proposer == SEED] == ["default"] * 10 + ["budget-point"] * 6
    assert all(t.arm.proposer != SEED for t in trials[16:])
    known = {t.structure for t in trials if t.arm.proposer == SEED}
    new = {t.structure for t in trials if t.in_full} - known
    assert len(new) >= 14
    assert sum(t.arm.proposer == KNOBS for t in trials if t.in_full) >= 4
    assert finished.progress().evaluations == 40


def test_nothing_is_evaluated_twice(finished: Run) -> None:
    hashes = [trial.hash for trial in finished.trials]
    assert len(set(hashes)) == len(hashes)
    assert hashes == [canonical_hash(parse(t.proposal.source).bind(t.knobs)) for t in finished.trials]


def test_the_default_frontier_spans_densities(finished: Run) -> None:
    densities = sorted({e.density for e in finished.leaderboard().frontier if e.density})
    spread = 1
    last = densities[0]
    for value in densities:
        if value >= 1.5 * last:
            spread, last = spread + 1, value
    assert spread >= 3, densities


def test_same_seed_same_campaign_and_another_seed_another(tmp_path: Path, finished: Run) -> None:
    Campaign(config(tmp_path, evaluations=40), evaluator=FakeEvaluator()).run()
    again = Run.open("run", tmp_path)
    assert story(again) == story(finished)
    assert again.leaderboard().to_json() == finished.leaderboard().to_json()
    Campaign(config(tmp_path, name="other", evaluations=24, seed=1), evaluator=FakeEvaluator()).run()
    other = Run.open("other", tmp_path)
    assert story(other)[:16] == story(finished)[:16]
    assert story(other)[16:] != story(finished)[16:24]


def test_a_larger_budget_goes_on_where_the_smaller_one_stopped(tmp_path: Path, finished: Run) -> None:
    first = FakeEvaluator()
    summary = Campaign(config(tmp_path, evaluations=18), evaluator=first).run()
    assert summary.reason == "the budget is spent: 18 evaluations"
    assert Campaign.resume("run", tmp_path, evaluator=FakeEvaluator()).run().state.evaluations == 18
    second = FakeEvaluator()
    Campaign.resume("run", tmp_path, evaluations=40, evaluator=second).run()
    again = Run.open("run", tmp_path)
    assert story(again) == story(finished)
    assert len(first.calls) + len(second.calls) == len(again.trials)
    assert again.config.evaluations == 40


def test_the_same_configuration_resumes_and_another_is_refused(tmp_path: Path) -> None:
    Campaign(config(tmp_path, evaluations=3), evaluator=FakeEvaluator()).run()
    Campaign(config(tmp_path, evaluations=5), evaluator=FakeEvaluator()).run()
    assert len(Run.open("run", tmp_path).trials) == 5
    with pytest.raises(VortexError, match=r"run 'run' exists with other settings \(seed is 0 there and 7 here\)"):
        Campaign(config(tmp_path, seed=7), evaluator=FakeEvaluator())


def test_other_conditions_are_refused_and_the_evaluator_is_closed(tmp_path: Path) -> None:
    Campaign(config(tmp_path, evaluations=2), evaluator=FakeEvaluator()).run()
    elsewhere = FakeEvaluator(environment="another machine")
    with pytest.raises(VortexError, match="measured under other conditions"):
        Campaign(config(tmp_path, evaluations=4), evaluator=elsewhere).run()
    assert elsewhere.closed and not elsewhere.calls
    assert len(Run.open("run", tmp_path).trials) == 2


def test_two_campaigns_on_one_run(tmp_path: Path) -> None:
    settings = config(tmp_path, evaluations=2)
    Campaign(settings, evaluator=FakeEvaluator()).run()
    with Store.write(settings.folder), pytest.raises(VortexError, match="run 'run' is being written by process"):
        Campaign(config(tmp_path, evaluations=4), evaluator=FakeEvaluator()).run()
    assert Campaign(config(tmp_path, evaluations=4), evaluator=FakeEvaluator()).run().state.evaluations == 4


class Reject(FakeEvaluator):
    """Rejects everything at the screen."""

    def evaluate(self, source: str, knobs: dict[str, Any] | None = None, *, fidelity: str = "full") -> Verdict:
        verdict = super().evaluate(source, knobs, fidelity=fidelity)
        return self._stopped(verdict, "rejected", "screen", "keeps nothing")


def test_rejected_programs_do_not_count_but_do_not_go_on_for_ever(tmp_path: Path) -> None:
    evaluator = Reject()
    summary = Campaign(config(tmp_path, evaluations=7), evaluator=evaluator).run()
    assert summary.reason == "the budget is spent: 21 programs tried, most of them rejected before they were measured"
    assert len(evaluator.calls) == 21
    run = Run.open("run", tmp_path)
    assert run.progress().rejected == 21 and run.progress().evaluations == 0
    assert run.leaderboard().closing_lines() == ["No program was accepted, so there is no frontier."]


class LoseAll(FakeEvaluator):
    def evaluate(self, source: str, knobs: dict[str, Any] | None = None, *, fidelity: str = "full") -> Verdict:
        return self._stopped(super().evaluate(source, knobs, fidelity=fidelity), "error", "numerics", "worker gone")


def test_workers_lost_one_after_the_other_end_the_session(tmp_path: Path) -> None:
    with pytest.raises(VortexError, match=r"5 evaluations in a row lost their worker \(last: worker gone\)"):
        Campaign(config(tmp_path), evaluator=LoseAll()).run()
    assert len(Run.open("run", tmp_path).trials) == 5


class Interrupting(FakeEvaluator):
    """Sends SIGINT to this process during the given evaluations."""

    def __init__(self, at: Sequence[int]):
        super().__init__()
        self.at = list(at)

    def evaluate(self, source: str, knobs: dict[str, Any] | None = None, *, fidelity: str = "full") -> Verdict:
        for _ in range(self.at.count(len(self.calls))):
            os.kill(os.getpid(), signal.SIGINT)
        return super().evaluate(source, knobs, fidelity=fidelity)


def test_ctrl_c_finishes_the_running_evaluation(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    evaluator = Interrupting([3])
    summary = Campaign(config(tmp_path), evaluator=evaluator).run()
    assert summary.reason == "stopped after what was running"
    run = Run.open("run", tmp_path)
    assert len(run.trials) == 4 and not run.history.running and run.state == "finished"
    assert signal.getsignal(signal.SIGINT) is handler and evaluator.closed


def test_a_second_ctrl_c_gives_the_evaluation_up_and_resume_repeats_it(tmp_path: Path) -> None:
    summary = Campaign(config(tmp_path, evaluations=8), evaluator=Interrupting([3, 3])).run()
    assert summary.reason.startswith("stopped at once")
    run = Run.open("run", tmp_path)
    assert len(run.trials) == 3 and len(run.history.running) == 1
    again = FakeEvaluator()
    Campaign.resume("run", tmp_path, evaluator=again).run()
    assert parse(again.calls[0][0]).name == run.history.running[0].proposal.name
    assert len(Run.open("run", tmp_path).trials) == 8 and len(again.calls) == 5


def test_a_campaign_runs_outside_the_main_thread(tmp_path: Path) -> None:
    results: list[int] = []
    campaign = Campaign(config(tmp_path, evaluations=2), evaluator=FakeEvaluator())
    thread = threading.Thread(target=lambda: results.append(campaign.run().state.evaluations))
    thread.start()
    thread.join()
    assert results == [2]


class Slow(FakeEvaluator):
    """Every evaluation takes ten minutes of a clock of its own."""

    now = 0.0

    def evaluate(self, source: str, knobs: dict[str, Any] | None = None, *, fidelity: str = "full") -> Verdict:
        self.now += 600
        return super().evaluate(source, knobs, fidelity=fidelity)


def test_time_is_a_budget_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator, states = Slow(), list[ProgressState]()
    monkeypatch.setattr("vortexlab.agent.session.time", SimpleNamespace(monotonic=lambda: evaluator.now))
    summary = Campaign(config(tmp_path, evaluations=None, hours=0.5), evaluator=evaluator).run(states.append)
    assert summary.reason == "the budget is spent: 0.5 hours"
    assert summary.state.budget is None and summary.state.recorded == 3
    left = [state.seconds_left for state in states if state.phase == "recorded"]
    assert left == pytest.approx([1200, 600, 0], abs=120)


def test_progress_tells_the_whole_story(tmp_path: Path) -> None:
    states: list[ProgressState] = []
    summary = Campaign(config(tmp_path, evaluations=12), evaluator=FakeEvaluator()).run(states.append)
    assert [state.phase for state in states[:4]] == ["starting", "proposing", "evaluating", "recorded"]
    assert states[2].current == "Dense"
    assert [s.recorded for s in states if s.phase == "recorded"] == list(range(1, summary.state.recorded + 1))
    last = states[-1]
    assert last.phase == "finished" and last.evaluations == 12 and last.budget == 12
    assert last.accepted + last.rejected + last.errors == last.recorded
    assert last.funnel["proposed"] == last.recorded and last.funnel["accuracy"] == last.accepted
    assert last.frontier >= 2 and last.hypervolume > 1 and last.per_hour > 0 and last.seconds_left == 0
    assert any(state.seconds_left for state in states)


def test_a_disk_that_fills_up_loses_nothing(tmp_path: Path, finished: Run) -> None:
    """The limit on file size stands in for the end of the disk."""
    settings = config(tmp_path, evaluations=40)

    def fill() -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
        return Campaign(settings, evaluator=FakeEvaluator()).run().reason

    line = in_child(fill)
    assert line.startswith(f"VortexError: the disk of {settings.folder} is full or failing"), line
    full = Run.open("run", tmp_path)
    assert full.state == "interrupted" and 2 < len(full.trials) < 40
    Campaign.resume("run", tmp_path, evaluator=FakeEvaluator()).run()
    assert story(Run.open("run", tmp_path)) == story(finished)


def test_a_run_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file in the way")
    evaluator = FakeEvaluator()
    with pytest.raises(VortexError, match=r"run folder .*run cannot be used \(File exists\)"):
        Campaign(config(tmp_path), evaluator=evaluator).run()
    assert evaluator.closed and not evaluator.calls


class Faulty:
    """Fails in a different way every time it is asked."""

    name = "faulty"
    operators = ("a", "b")

    def __init__(self, failures: Sequence[Exception | Proposal | None]):
        self.failures, self.asked = list(failures), 0

    def propose(
        self, history: Sequence[Member], rng: random.Random, slot: int, operator: str | None = None
    ) -> Proposal | None:
        assert operator in self.operators
        answer = self.failures[self.asked % len(self.failures)]
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        return answer


def _with(proposer: Proposer, runs: Path, evaluations: int, **changes: Any) -> Run:
    settings = config(
        runs, evaluations=evaluations, seeds=("dense", "quest"), budget_points=(), knob_share=0.0, **changes
    )
    Campaign(settings, evaluator=FakeEvaluator(), proposers=lambda record, history: [proposer]).run()
    return Run.open("run", runs)


def test_a_slot_whose_proposer_fails_goes_to_a_typed_mutation(tmp_path: Path) -> None:
    broken = Proposal("class X: pass", "X", "faulty", "a")
    run = _with(Faulty([ProposerError("no answer"), broken, KeyError("bug"), None]), tmp_path, 7)
    later = run.trials[2:]
    assert later and all(trial.arm.proposer in ("grammar", KNOBS) for trial in later)
    assert [trial.slot for trial in run.trials] == list(range(len(run.trials)))
    reasons = [failure["reason"] for failure in run.history.failures]
    assert reasons[0] == "no answer"
    assert reasons[1].startswith("the proposed text is no program:")
    assert reasons[2] == "KeyError: 'bug'"
    assert run.status()["failures"][0].endswith("faulty: no answer")


def test_what_was_evaluated_already_is_not_taken_from_a_proposer(tmp_path: Path) -> None:
    renamed = Proposal(source("quest").replace("Quest", "Fresh"), "Fresh", "faulty", "a")
    faulty = Faulty([renamed])
    run = _with(faulty, tmp_path, 6)
    assert faulty.asked > 0 and not run.history.failures
    assert "Fresh" not in [trial.proposal.name for trial in run.trials]
    assert len({trial.hash for trial in run.trials}) == len(run.trials)


def test_what_counts_against_the_budget() -> None:
    def counts(status: str, *gates: str) -> bool:
        passed = tuple(GateResult(name, name != "screen", 0.0) for name in gates)
        verdict = Verdict("P", "", "", {}, status, gates=passed, accuracy=Estimate(1, 1, 1))
        return Trial(0, Arm("grammar", "x"), Proposal("", "P", "", ""), "", "", verdict).in_full

    assert counts("accepted", *GATES)
    assert not counts("rejected", "parse", "numerics", "screen")
    assert counts("rejected", *GATES), "rejected by the screen and audited"
    assert counts("error", "parse")


def test_the_circuit_breaker_stops_asking_and_tries_again_later(tmp_path: Path) -> None:
    faulty = Faulty([ProposerError("down")])
    run = _with(faulty, tmp_path, 24, structure_share=1.0)
    slots = [failure["slot"] for failure in run.history.failures]
    assert slots[:4] == [2, 3, 4, 14]
    assert len(slots) == faulty.asked <= 6


def test_a_permanent_failure_ends_the_proposer_for_the_session(tmp_path: Path) -> None:
    faulty = Faulty([ProposerError("the budget is spent", permanent=True)])
    run = _with(faulty, tmp_path, 12)
    assert faulty.asked == 1 and len(run.history.failures) == 1
    assert run.progress().evaluations == 12


def test_programs_from_outside_take_slots_of_the_same_campaign(tmp_path: Path) -> None:
    settings = config(tmp_path, evaluations=14, proposers=("handoff",), budget_points=())
    summary = Campaign(settings, evaluator=FakeEvaluator()).run()
    assert summary.reason == "the seeds are evaluated; go on with `vortex ask run`"
    made = GrammarProposer().propose([], random.Random(3), 0)
    assert made is not None
    evaluator = FakeEvaluator()
    first = Campaign.resume("run", tmp_path, evaluator=evaluator).submit(made)
    assert Run.open("run", tmp_path).state == "finished"
    assert first.id == "t0010" and first.source == made.source and len(evaluator.calls) == 1
    second = Campaign.resume("run", tmp_path, evaluator=evaluator).submit(made)
    assert second.id == first.id and len(evaluator.calls) == 1
    with pytest.raises(VortexError, match=r"^1:4: error"):
        Campaign.resume("run", tmp_path, evaluator=evaluator).submit(Proposal("no program", "x", "handoff", "tell"))
    other = Proposal(source("quest"), "Quest", "handoff", "tell", knobs={"budget": 5})
    with pytest.raises(VortexError, match="the budget of run 'run' is spent"):
        Campaign.resume("run", tmp_path, evaluations=9, evaluator=evaluator).submit(other)


def test_the_seed_plan_sets_page_budgets_by_the_context() -> None:
    settings = CampaignConfig(
        name="x", budget_points=(0.05, 0.25, 1.0), evaluation=EvaluationConfig(lengths=(512, 4096))
    )
    plan = seed_plan(settings)
    assert [p.proposal.knobs["budget"] for p in plan if p.proposal.name == "Quest"] == [64, 13, 256]
    assert [p.proposal.knobs["fraction"] for p in plan if p.proposal.name == "TopP"] == [0.3, 0.05, 0.25, 0.5]
    assert len({item.hash for item in plan}) == len(plan), "64 pages of 16 tokens are a quarter already"
    assert [item.proposal.name for item in plan].count("Dense") == 1


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"name": "a/b"}, "run name 'a/b' is not usable"),
        ({"name": "latest"}, "run name 'latest' is not usable"),
        ({"evaluations": None}, "a campaign needs a budget"),
        ({"evaluations": 0}, "evaluations must be at least 1"),
        ({"hours": -1.0}, "hours must be above 0"),
        ({"proposers": ("oracle",)}, "proposer 'oracle' is not one of grammar, llm, handoff"),
        ({"proposers": ("llm",)}, "the llm proposer needs a model"),
        ({"seeds": ("flash",)}, "seed 'flash' is not one of"),
        ({"budget_points": (2.0,)}, "budget points are shares of the context"),
        ({"knob_share": 1.5}, "knob_share must lie in 0..1"),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_work_is_refused(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(VortexError, match=line):
        config(tmp_path, **changes)


def test_a_configuration_survives_its_json(tmp_path: Path) -> None:
    settings = config(tmp_path, hours=2.0, seeds=("dense",))
    assert CampaignConfig.from_json(settings.to_json()) == settings
    with pytest.raises(VortexError, match="campaign setting 'colour' is unknown"):
        CampaignConfig.from_json({**settings.to_json(), "colour": 1})


def test_history_is_the_same_however_often_it_is_folded(finished: Run) -> None:
    events = list(finished.events())
    half = History.of(events[: len(events) // 2])
    for event in events[len(events) // 2 :]:
        half.add(event)
    assert half.trials == finished.history.trials and half.gains() == finished.history.gains()
