"""What the parts of a frontier's programs buy: measured once, recorded, paired, and told in every place."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from campaign_fakes import FakeEvaluator, config
from face_fixtures import NAME, record, vortex

from vortexlab.agent import explain as module
from vortexlab.agent.campaign import Campaign
from vortexlab.agent.explain import Explanation, Part, explain, members, recorded
from vortexlab.agent.run import Run
from vortexlab.cli.output import interval
from vortexlab.compare import compare_members
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.verdict import Estimate, Verdict
from vortexlab.report.page import render
from vortexlab.report.summary import summary_lines
from vortexlab.search_spaces.ablations import ablations

QUEST, WINDOW = "t0005", "t0001"  # of the recorded campaign, whose programs never change


class Counting(FakeEvaluator):
    """Notes its configuration; is interrupted in the evaluation after `stops_after`."""

    def __init__(self, config: EvaluationConfig, stops_after: int = 10_000):
        super().__init__()
        self.config, self.stops_after = config, stops_after

    def evaluate(
        self, source: str, knobs: dict[str, Any] | None = None, *, fidelity: str = "full", parameters: Any = None
    ) -> Verdict:
        if len(self.calls) == self.stops_after:
            raise KeyboardInterrupt
        assert fidelity == "full"
        return super().evaluate(source, knobs, fidelity=fidelity)


class Bench:
    """Hands out evaluators and keeps them."""

    def __init__(self, stops_after: int = 10_000):
        self.made: list[Counting] = []
        self.stops_after = stops_after

    def __call__(self, config: EvaluationConfig) -> Counting:
        self.made.append(Counting(config, self.stops_after))
        return self.made[-1]

    @property
    def calls(self) -> int:
        return sum(len(item.calls) for item in self.made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Run:
    shutil.copytree(folder, tmp_path / NAME)
    return Run.open(NAME, tmp_path)


def again(run: Run) -> Run:
    return Run.open(run.name, run.folder.parent)


def measured(run: Run, *ids: str, bench: Bench | None = None, **settings: Any) -> list[Explanation]:
    return explain(run, ids, evaluator=bench or Bench(), environment=lambda config: "fake", **settings)


def test_every_part_of_the_frontier_is_measured_as_the_campaign_measured(run: Run) -> None:
    bench = Bench()
    rows = measured(run, bench=bench)
    assert [row.trial.id for row in rows] == [trial.id for trial in run.history.frontier()]
    assert all(row.left == 0 for row in rows) and any(row.parts for row in rows)
    for row in rows:
        assert [part.ablation for part in row.parts] == ablations(row.trial.proposal.source, row.trial.knobs)
    (evaluator,) = bench.made
    own = run.config.evaluation
    assert evaluator.config == replace(own, promoted=1.0, audit_share=1.0) and evaluator.closed
    hashes = {part.ablation.hash for row in rows for part in row.parts}
    assert bench.calls == len(hashes - {trial.hash for trial in run.trials}) < sum(len(row.parts) for row in rows)


def test_trials_of_the_run_are_taken_from_the_record(run: Run) -> None:
    assert run.history.find(QUEST).proposal.name == "Quest"
    bench = Bench()
    (row,) = measured(run, QUEST, bench=bench)
    plain = next(part for part in row.parts if part.ablation.change.startswith("with the product"))
    trial = run.history.find(plain.trial)
    assert trial.proposal.name == "Centroid" and plain.verdict is trial.verdict
    assert plain.ablation.source not in [source for source, _ in bench.made[0].calls]


def test_what_a_part_buys_is_the_paired_difference(run: Run) -> None:
    (row,) = measured(run, QUEST)
    part = next(part for part in row.parts if part.trial)
    _, other = compare_members(run, [part.trial, QUEST])["members"]
    assert part.speedup is not None and part.speedup.to_json() == other["speedup_difference"]
    assert part.accuracy is not None and part.accuracy.to_json() == other["accuracy_difference"]


def test_nothing_is_measured_twice(run: Run) -> None:
    first = measured(run)
    bench = Bench()
    events = len(list(again(run).events()))
    assert [row.to_json() for row in measured(again(run), bench=bench)] == [row.to_json() for row in first]
    assert bench.made == [] and len(list(again(run).events())) == events
    stale = measured(run, bench=bench)  # read before
    assert bench.made == [] and stale[0].to_json() == first[0].to_json()


def test_an_interrupted_explanation_goes_on(run: Run) -> None:
    total = Bench()
    bench = Bench(stops_after=3)
    with pytest.raises(KeyboardInterrupt):
        measured(run, bench=bench)
    assert bench.made[0].closed
    kept = again(run).history.ablated
    assert len(kept) == 3
    rows = measured(again(run), bench=total)
    assert total.calls == len({p.ablation.hash for row in rows for p in row.parts if not p.trial}) - 3


def test_a_limit_of_evaluations_leaves_the_rest_for_later(run: Run) -> None:
    bench = Bench()
    rows = measured(run, bench=bench, evaluations=2)
    assert bench.calls == 2 and sum(row.left for row in rows) > 0
    assert {part.effect for row in rows for part in row.parts if part.verdict is None} == {"not measured yet"}
    before = len(list(again(run).events()))
    read = explain(again(run), [QUEST], evaluations=0)  # nowhere near the conditions of the run
    assert read[0].parts and len(list(again(run).events())) == before


def test_explaining_changes_nothing_of_the_campaign(run: Run) -> None:
    before = run.status(), run.leaderboard().to_json()
    measured(run, WINDOW, QUEST)
    assert (again(run).status(), again(run).leaderboard().to_json()) == before
    folder = run.folder.parent
    resumed = Campaign.resume(NAME, folder, evaluations=24, evaluator=FakeEvaluator()).run()
    assert resumed.state.evaluations == 24
    assert recorded(again(run), [run.history.find(QUEST)])[0].parts


def test_a_run_that_was_measured_elsewhere_is_refused(run: Run) -> None:
    bench = Bench()
    with pytest.raises(VortexError, match=r"other conditions .* --evaluations 0 prints"):
        explain(run, [QUEST], evaluator=bench, environment=lambda config: "another machine")
    assert bench.made == [] and again(run).history.ablations == {}


def test_members_that_cannot_be_explained(tmp_path: Path) -> None:
    record(tmp_path, evaluations=80)
    run = Run.open(NAME, tmp_path)
    rejected = next(trial for trial in run.trials if trial.point is None)
    assert rejected.verdict is not None
    with pytest.raises(VortexError, match=f"{rejected.id} was not accepted .gate {rejected.verdict.gate}: "):
        members(run, [rejected.id])
    for ids, words in ((["t0001", "1"], "twice"), (["t9999"], "there is no trial")):
        with pytest.raises(VortexError, match=words):
            members(run, ids)


def test_a_run_without_a_frontier(tmp_path: Path) -> None:
    class Rejecting(FakeEvaluator):
        def evaluate(self, *args: Any, **keywords: Any) -> Verdict:
            return self._stopped(super().evaluate(*args, **keywords), "rejected", "fidelity", "keeps nothing")

    Campaign(config(tmp_path, evaluations=2, seeds=("quest", "dense")), evaluator=Rejecting()).run()
    assert "has no frontier yet" in vortex("explain", "run", "--runs", tmp_path).complaint()


def part(verdict: Verdict | None, speedup: Estimate | None = None, accuracy: Estimate | None = None) -> Part:
    (found, *_) = ablations("@program(page=16)\nclass P:\n    def select(): return first(1) | last(2)\n")
    return Part(found, verdict, "", speedup, accuracy)


def test_effects_in_words() -> None:
    found = FakeEvaluator().evaluate("@program(page=16)\nclass P:\n    def select(): return first(1)\n")
    more, less, none = Estimate(0.2, 0.1, 0.3), Estimate(-0.2, -0.3, -0.1), Estimate(0.0, -0.1, 0.1)
    assert part(found, less, more).effect == "buys accuracy, costs speed-up"
    assert part(found, more, more).effect == "buys speed-up and accuracy"
    assert part(found, none, none).effect == "buys nothing that can be seen" and part(found, none, none).is_idle
    assert part(found, less, none).effect == "buys nothing that can be seen, costs speed-up"
    tiny = Estimate(0.0004, 0.0004, 0.0004)
    assert part(found, tiny, none).is_idle
    stopped = replace(found, status="rejected", gate="fidelity")
    assert part(stopped).effect == "needed: without it gate fidelity says no"
    lost = replace(found, status="error", gate="numerics")
    assert part(lost).effect == "not known: the worker was lost without it (numerics)" and not part(lost).is_idle


def test_a_trial_that_was_only_behind_on_the_screen_is_measured(run: Run) -> None:
    (row,) = measured(again(run), QUEST, evaluations=0)
    other = next(part.trial for part in row.parts if part.trial)
    trial = run.history.find(other)
    assert trial.verdict is not None
    behind = replace(trial.verdict, status="rejected", gate="screen", speedup=None, accuracy=None, outcomes=())
    run.history.trials[trial.slot] = replace(trial, verdict=behind)
    bench = Bench()
    (row,) = measured(run, QUEST, bench=bench)
    assert not any(part.trial == other for part in row.parts)
    assert {part.ablation.source for part in row.parts if part.ablation.hash == trial.hash} <= {
        source for source, _ in bench.made[0].calls
    }


def test_the_command_measures_then_tells(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    monkeypatch.setattr(module, "_evaluator", bench)
    monkeypatch.setattr(module, "_environment", lambda config: "fake")
    runs = run.folder.parent
    first = vortex("explain", NAME, QUEST, "--evaluations", "1", "--runs", runs)
    assert f"parts are not measured yet: vortex explain {run.folder}" in first.out
    assert f"{QUEST} Quest without" in first.err
    found = vortex("explain", QUEST, WINDOW, "--runs", runs, "--json").json("explain")
    assert [item["id"] for item in found["members"]] == [QUEST, WINDOW] and found["left"] == 0
    assert found["members"][0]["nearest"]["program"] == "quest"
    calls = bench.calls
    told = vortex("explain", NAME, QUEST, "--runs", runs).out
    assert bench.calls == calls and "not measured" not in told
    for item in found["members"][0]["parts"]:
        assert item["change"] in told and item["effect"] in told and interval(item["accuracy_bought"]) in told
    assert "Tang et al., arXiv 2406.10774" in told
    monkeypatch.setattr(module, "_environment", lambda config: "another machine")
    assert "measured under other conditions" in vortex("explain", NAME, "--runs", runs).complaint()
    assert "there is no trial" in vortex("explain", NAME, "t9999", "--runs", runs).complaint()


def test_show_and_report_tell_why(run: Run) -> None:
    runs = run.folder.parent
    shown = vortex("show", NAME, QUEST, "--runs", runs)
    assert "nearest published  " in shown.out and "quest (Tang et al., arXiv 2406.10774)" in shown.out
    page = render(run).split(">Why these programs</h2>")[1].split("<h2 ")[0]
    assert "No part was measured" in page
    assert all(f">{trial.id} {trial.proposal.name}: speed-up" in page for trial in run.history.frontier())
    assert any("What its parts buy was not measured" in line for line in summary_lines(run))
    rows = measured(run)
    page = render(again(run)).split(">Why these programs</h2>")[1].split("<h2 ")[0]
    assert "No part was measured" not in page
    for row in rows:
        for item in row.parts:
            assert interval(item.accuracy) in page and item.effect in page
    (line,) = (line for line in summary_lines(again(run)) if line.startswith("Why "))
    assert "buy nothing that can be seen" in line
    told = vortex("report", NAME, "--runs", runs, "--json").json("report")["explained"]
    assert told == [row.to_json() for row in recorded(again(run))]


@pytest.mark.slow
def test_parts_with_a_real_evaluator(tmp_path: Path) -> None:
    words = ("--contexts", "2", "--evaluations", "4", "--speed", "predicted", "--threads", "1", "--device", "cpu",
             "--tasks", "needles", "--lengths", "256", "--dense-floor", "0")  # fmt: skip
    assert vortex("search", "--name", "tiny", "--runs", tmp_path, *words).status == 0
    opened = Run.open("tiny", tmp_path)
    trial = next(trial for trial in opened.trials if trial.point is not None and trial.proposal.name != "Dense")
    found = vortex("explain", "tiny", trial.id, "--evaluations", "2", "--runs", tmp_path, "--json").json("explain")
    done = [item for item in found["members"][0]["parts"] if item["status"]]
    assert len(done) == 2 and all(item["effect"] != "not measured yet" for item in done)
    verdicts = Run.open("tiny", tmp_path).history.ablated.values()
    assert all(item.conditions["lengths"] == [256] and item.contexts > 0 for item in verdicts if item.accuracy)
