"""Finals: sealed contexts at other lengths, opened once, logged, survived and never mixed with the campaign."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from campaign_fakes import FakeEvaluator
from face_fixtures import NAME, record, vortex

from vortexlab.agent.finals import final_config, finalists, hold, recorded
from vortexlab.agent.run import Run
from vortexlab.agent.store import Store
from vortexlab.cli.output import interval
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.samples import make_suite
from vortexlab.evaluator.verdict import Verdict
from vortexlab.report.page import render
from vortexlab.report.summary import recommended, summary_lines


class Sealed(FakeEvaluator):
    """Notes its configuration; `dies_after` evaluations it is killed."""

    def __init__(self, config: EvaluationConfig, dies_after: int = 99):
        super().__init__()
        self.config, self.dies_after = config, dies_after

    def evaluate(self, source: str, knobs: dict[str, Any] | None = None, *, fidelity: str = "full") -> Verdict:
        if len(self.calls) == self.dies_after:
            raise KeyboardInterrupt
        return super().evaluate(source, knobs, fidelity=fidelity)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    record(tmp_path)
    return Run.open(NAME, tmp_path)


def again(run: Run) -> Run:
    return Run.open(run.name, run.folder.parent)


def test_finals_are_about_other_lengths_and_sealed_seeds_and_the_declared_margin() -> None:
    config = EvaluationConfig(margin=0.03, lengths=(2048, 4096))
    found = final_config(config)
    assert found.lengths == (1024, 3072, 6144) and found.split == "sealed" and found.margin == 0.03
    assert found.contexts == 24 and found.stop_below == 0.0
    assert final_config(config, 8, (512,)).lengths == (512,)
    assert final_config(replace(config, lengths=(16384,))).lengths == (8192,)  # the model takes no 24,576 tokens
    assert final_config(replace(config, lengths=(600,), tasks=("frequent",))).lengths == (900,)  # 300 are too few
    for lengths in ((100,), (30000,)):
        with pytest.raises(VortexError, match=f"{lengths[0]} is not: give others"):
            final_config(config, lengths=lengths)
    with pytest.raises(VortexError, match="leave 4096 out"):
        final_config(config, lengths=(4096, 512))
    small = EvaluationConfig(lengths=(1024,), tasks=("needles",), contexts=3)
    drawn = [{tuple(sample.context) for sample in make_suite(item).samples} for item in (small, final_config(small))]
    assert drawn[1] and not drawn[0] & drawn[1]


def test_the_frontier_is_measured_and_logged(run: Run) -> None:
    events = len(list(run.events()))
    rows = hold(run, evaluator=Sealed)
    front = {entry.id for entry in run.leaderboard().frontier}
    assert {row.trial.id for row in rows} <= front and 0 < len(rows) <= 8
    assert all(row.verdict is not None and row.opening == 1 for row in rows)
    reopened = again(run)
    kinds = [event.kind for event in reopened.events()][events:]
    assert kinds == ["finals_opened"] + ["final"] * len(rows)
    assert [(row.trial.id, row.verdict) for row in recorded(reopened)] == [(row.trial.id, row.verdict) for row in rows]


def test_the_report_shows_sealed_results_beside_those_of_the_search(run: Run) -> None:
    assert ">Finals</h2>\n<p>None were held" in render(run)
    rows = hold(run, ["t0001", "t0002"], evaluator=Sealed)
    page = render(again(run))
    section = page.split(">Finals</h2>")[1].split("<h2 ")[0]
    assert "2048, 6144 tokens" in section and "seen before" not in section
    for row in rows:
        assert row.trial.verdict is not None and row.verdict is not None
        found = (row.trial.id, interval(row.trial.verdict.accuracy), interval(row.verdict.accuracy))
        assert all(text in section for text in found) and "[" in found[2]
    hold(again(run), ["t0003"], again=True, evaluator=Sealed)
    assert "had been seen before" in render(again(run))


def test_finals_change_nothing_of_the_campaign(run: Run) -> None:
    before = run.status(), run.leaderboard().to_json()
    hold(run, evaluator=Sealed)
    assert (again(run).status(), again(run).leaderboard().to_json()) == before


def test_a_second_opening_is_refused_or_marked(run: Run) -> None:
    hold(run, ["t0001"], evaluator=Sealed)
    for opened in (run, again(run)):  # a run that was read before the opening is refused as well
        with pytest.raises(VortexError, match="opened before, for t0001"):
            hold(opened, ["t0002"], evaluator=Sealed)
    assert len(again(run).history.openings) == 1
    rows = hold(again(run), ["t0002"], again=True, evaluator=Sealed)
    assert [row.opening for row in rows] == [2]
    assert [(row.trial.id, row.opening) for row in recorded(again(run))] == [("t0001", 1), ("t0002", 2)]


def test_a_stale_reader_cannot_open_a_second_time(run: Run) -> None:
    stale = again(run)
    hold(run, ["t0001"], evaluator=Sealed)
    with pytest.raises(VortexError, match="opened before"):
        hold(stale, ["t0002"], evaluator=Sealed)


def test_an_interrupted_opening_goes_on_under_its_own_conditions(run: Run) -> None:
    with pytest.raises(KeyboardInterrupt):
        hold(run, ["t0001", "t0002", "t0003"], evaluator=lambda config: Sealed(config, dies_after=1))
    assert [row.verdict is None for row in recorded(again(run))] == [False, True, True]
    with pytest.raises(VortexError, match="was interrupted"):
        hold(again(run), ["t0004"], evaluator=Sealed)
    made: list[Sealed] = []

    def make(config: EvaluationConfig) -> Sealed:
        made.append(Sealed(config))
        return made[-1]

    rows = hold(again(run), config=final_config(run.config.evaluation, contexts=2), evaluator=make)
    assert len(made[0].calls) == 2 and made[0].config.contexts == 24 and made[0].closed
    assert all(row.verdict and row.opening == 1 for row in rows)


def test_the_opening_is_recorded_before_a_context_is_made(run: Run) -> None:
    def broken(config: EvaluationConfig) -> Sealed:
        with Store.read(run.folder) as store:
            assert [event.kind for event in store.events()][-1] == "finals_opened"
        raise VortexError("no room")

    with pytest.raises(VortexError, match="no room"):
        hold(run, ["t0001"], evaluator=broken)
    assert [opening.is_complete for opening in again(run).history.openings] == [False]


def test_only_accepted_programs_are_finalists(tmp_path: Path) -> None:
    record(tmp_path, evaluations=80)  # enough that some were rejected
    run = Run.open(NAME, tmp_path)
    rejected = next(trial.id for trial in run.trials if trial.point is None)
    for ids, words in (([rejected], "not accepted"), (["t0001", "1"], "twice"), (["t9999"], "there is no trial")):
        with pytest.raises(VortexError, match=words):
            finalists(run, ids)


def test_the_command_opens_once_then_tells(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vortexlab.agent.finals._evaluator", Sealed)
    runs = run.folder.parent
    found = vortex("finals", NAME, "t0001", "t0002", "--runs", runs, "--contexts", "5", "--json").json("finals")
    assert [row["id"] for row in found["rows"]] == ["t0001", "t0002"] and found["contexts"] == 5
    assert found["lengths"] == [2048, 6144] and found["split"] == "sealed"
    told = vortex("finals", "--runs", runs).out
    assert "t0001" in told and "2048, 6144 tokens" in told and "had been seen before" not in told
    assert len(again(run).history.openings) == 1
    assert "opened before" in vortex("finals", NAME, "t0003", "--runs", runs).complaint()
    assert "give --again too" in vortex("finals", NAME, "--lengths", "512", "--runs", runs).complaint()
    assert "leave 4096 out" in vortex("finals", "--again", "--lengths", "4k", "--runs", runs).complaint()
    marked = vortex("finals", NAME, "t0003", "--again", "--runs", runs).out
    assert "had been seen before" in marked


def test_the_ten_lines_say_what_sealed_contexts_found(run: Run) -> None:
    best = recommended(run.leaderboard())
    assert best is not None
    hold(run, [best.id], evaluator=Sealed)
    (line,) = (line for line in summary_lines(again(run)) if line.startswith("How surely"))
    (row,) = recorded(again(run))
    assert row.verdict is not None and f"On sealed contexts it keeps {interval(row.verdict.accuracy)}" in line
