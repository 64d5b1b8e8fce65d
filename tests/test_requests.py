"""People in the loop of a campaign: what they ask for is taken between slots, once, whatever is killed or written."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from campaign_fakes import FakeEvaluator, config

from vortexlab.agent import inbox, prompt, requests
from vortexlab.agent.arms import Arm
from vortexlab.agent.campaign import Campaign
from vortexlab.agent.events import Event
from vortexlab.agent.progress import ProgressState
from vortexlab.agent.proposers.base import Proposal
from vortexlab.agent.proposers.grammar import GrammarProposer
from vortexlab.agent.run import Run
from vortexlab.agent.slots import _tunable
from vortexlab.agent.trials import HANDOFF, History
from vortexlab.cli.live import Display
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.verdict import Verdict
from vortexlab.search_spaces.library import source

MINE = """
@program(page=16)
class Mine:
    recent = knob.int(1, 64, default=8)
    def select():
        return first(2) | last(recent)
"""
LATE = 18  # a slot after the seeds
EVALUATIONS = 24


def story(run: Run) -> list[tuple[Any, ...]]:
    return [(t.slot, t.arm, t.proposal, t.hash, t.verdict and t.verdict.to_json()) for t in run.trials]


def once(phase: str, recorded: int, action: Callable[[], object]) -> Callable[[ProgressState], None]:
    """Watches a campaign, and acts the first time it is in `phase` with so many programs recorded."""
    done: list[object] = []

    def watch(state: ProgressState) -> None:
        if not done and (state.phase, state.recorded) == (phase, recorded):
            done.append(None)
            action()

    return watch


def ask(runs: Path) -> None:
    """A program and a pin, in this order."""
    assert requests.propose(MINE, "run", runs, knobs={"recent": 5}, label="by hand").running
    assert requests.pin("t0001", "run", runs).running


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Run:
    runs = tmp_path_factory.mktemp("untouched")
    Campaign(config(runs, evaluations=EVALUATIONS), evaluator=FakeEvaluator()).run()
    return Run.open("run", runs)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same campaign, of which something was asked during slot `LATE`."""
    runs = tmp_path_factory.mktemp("asked")
    watch = once("evaluating", LATE, lambda: ask(runs))
    Campaign(config(runs, evaluations=EVALUATIONS), evaluator=FakeEvaluator()).run(watch)
    return Run.open("run", runs)


def test_a_proposal_takes_the_next_slot_of_the_running_campaign(asked: Run, untouched: Run) -> None:
    assert story(asked)[: LATE + 1] == story(untouched)[: LATE + 1]
    mine = asked.trials[LATE + 1]
    assert (mine.proposal.name, mine.arm, mine.proposal.label) == ("Mine", Arm(HANDOFF, "proposed"), "by hand")
    assert mine.knobs == {"recent": 5} and mine.in_full
    assert asked.progress().evaluations == untouched.progress().evaluations == EVALUATIONS
    assert asked.member(mine.id)["arm"] == ["handoff", "proposed"]
    assert not inbox.waiting(asked.folder) and not asked.status()["waiting"]
    events = [(event.data["kind"], event.data["slot"]) for event in asked.events("request")]
    assert events == [("propose", LATE + 1), ("pin", LATE + 1)]


def test_a_proposal_comes_before_the_seeds_and_spends_the_budget(tmp_path: Path) -> None:
    watch = once("evaluating", 0, lambda: requests.propose(source("quest"), "run", tmp_path))
    Campaign(config(tmp_path, evaluations=3), evaluator=FakeEvaluator()).run(watch)
    names = [trial.proposal.name for trial in Run.open("run", tmp_path).trials]
    assert names == ["Dense", "Quest", "SinkWindow"]


class Killed(BaseException):
    """Ends the controller where it stands."""


class KilledOver(FakeEvaluator):
    def evaluate(self, source: str, knobs: dict[str, Any] | None = None, *, fidelity: str = "full") -> Verdict:
        if "class Mine" in source:
            raise Killed
        return super().evaluate(source, knobs, fidelity=fidelity)


@pytest.mark.parametrize("where", ["the first deletion", "the second deletion", "the evaluation"])
def test_a_kill_neither_repeats_nor_loses_a_request(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Run
) -> None:
    deleted = []

    def discard(path: Path) -> None:
        deleted.append(path)
        if len(deleted) == {"the first deletion": 1, "the second deletion": 2}.get(where):
            raise Killed
        path.unlink()

    settings = config(tmp_path, evaluations=EVALUATIONS)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(inbox, "discard", discard)
        evaluator = KilledOver() if where == "the evaluation" else FakeEvaluator()
        Campaign(settings, evaluator=evaluator).run(once("evaluating", LATE, lambda: ask(tmp_path)))
    left = {"the first deletion": 2, "the second deletion": 1, "the evaluation": 0}[where]
    assert len(inbox.waiting(settings.folder)) == left
    Campaign.resume("run", tmp_path, evaluator=FakeEvaluator()).run()
    run = Run.open("run", tmp_path)
    assert story(run) == story(asked) and not inbox.waiting(run.folder)
    ids = [event.data["id"] for event in run.events("request")]
    assert len(ids) == len(set(ids)) == 2


def test_what_was_evaluated_is_not_evaluated_again(tmp_path: Path) -> None:
    receipts: list[requests.Receipt] = []

    def twice() -> None:
        for text in (source("dense"), source("sink_window"), MINE, MINE.replace("Mine", "Renamed")):
            receipts.append(requests.propose(text, "run", tmp_path))

    Campaign(config(tmp_path, evaluations=5), evaluator=FakeEvaluator()).run(once("evaluating", 1, twice))
    assert [(receipt.trial, bool(receipt.request)) for receipt in receipts] == [
        ("t0000", False), (None, False), (None, True), (None, True),
    ]  # fmt: skip
    assert [receipt.message for receipt in receipts[:2]] == [
        "Dense was evaluated already: t0000", "SinkWindow is being evaluated: t0001",
    ]  # fmt: skip
    run = Run.open("run", tmp_path)
    assert [trial.proposal.name for trial in run.trials][:3] == ["Dense", "SinkWindow", "Mine"]
    assert run.history.notes == ["`vortex propose` was refused: Renamed waits for its slot already"]


def test_a_proposal_outlives_the_budget_and_one_told_meanwhile_is_the_same(tmp_path: Path) -> None:
    Campaign(config(tmp_path, evaluations=3), evaluator=FakeEvaluator()).run()
    receipt = requests.propose(MINE, "run", tmp_path)
    on = f"waits for `vortex search --resume {tmp_path / 'run'} --evaluations N`"
    assert not receipt.running and receipt.message.endswith(on)
    assert Run.open("run", tmp_path).status()["waiting"] == ["propose Mine"]
    Campaign.resume("run", tmp_path, evaluator=FakeEvaluator()).run()
    run = Run.open("run", tmp_path)
    assert len(run.trials) == 3 and run.status()["waiting"] == ["propose Mine"] and not inbox.waiting(run.folder)
    more = Campaign.resume("run", tmp_path, evaluations=6, evaluator=FakeEvaluator())
    told = more.submit(Proposal(MINE, "Mine", HANDOFF, "tell"))
    Campaign.resume("run", tmp_path, evaluator=FakeEvaluator()).run()
    run = Run.open("run", tmp_path)
    assert [t.id for t in run.trials if t.proposal.name == "Mine"] == [told.id] and len(run.trials) == 6
    assert not run.status()["waiting"]


def test_a_replay_repeats_what_people_asked_for_at_its_slot(asked: Run) -> None:
    runs = asked.folder.parent
    Campaign(config(runs, name="again", evaluations=EVALUATIONS, replay="run"), evaluator=FakeEvaluator()).run()
    again = Run.open("again", runs)
    assert story(again) == story(asked) and again.history.pinned == asked.history.pinned == [1]
    assert [event.data["from_run"] for event in again.events("request")] == ["run", "run"]


def test_a_pin_changes_what_follows_and_one_taken_back_nothing(tmp_path: Path, asked: Run, untouched: Run) -> None:
    assert story(asked)[LATE + 2 :] != story(untouched)[LATE + 1 : -1]
    assert [member.id for member in asked.members() if member.pinned] == ["t0001"]

    def back() -> None:
        requests.pin("t0001", "run", tmp_path)
        requests.pin("1", "run", tmp_path, remove=True)

    Campaign(config(tmp_path, evaluations=EVALUATIONS), evaluator=FakeEvaluator()).run(once("evaluating", LATE, back))
    run = Run.open("run", tmp_path)
    assert story(run) == story(untouched) and not run.history.pinned
    assert [event.data["kind"] for event in run.events("request")] == ["pin", "unpin"]


def pinned(run: Run, *ids: str) -> History:
    """The run's history, with these members pinned."""
    events = list(run.events())
    for number, identifier in enumerate(ids):
        data = {"id": str(number), "kind": "pin", "trial": identifier, "slot": len(run.trials)}
        events.append(Event(events[-1].seq + 1, events[-1].time, "request", data))
    return History.of(events)


def off_the_frontier(run: Run) -> str:
    """An accepted program with knobs, off the frontier, whose structure was tried more than once."""
    tried = run.history.totals.tried
    return next(
        trial.id for trial, member in zip(run.trials, run.members(), strict=True)
        if trial.point and trial.knobs and not member.on_frontier and tried[trial.structure] > 1
    )  # fmt: skip


def test_half_of_the_parents_are_pinned_ones(untouched: Run) -> None:
    chosen = off_the_frontier(untouched)
    proposer = GrammarProposer()

    def draws(history: History) -> int:
        made = [proposer.propose(history.members(), random.Random(n), 0, "swap-reduction") for n in range(80)]
        return sum(chosen in item.parents for item in made if item)

    before, after = draws(untouched.history), draws(pinned(untouched, chosen))
    assert before < 12 and 28 <= after <= 56


def test_the_knobs_of_a_pinned_program_are_tuned_as_those_of_the_frontier(untouched: Run) -> None:
    chosen = untouched.history.find(off_the_frontier(untouched))
    assert chosen.slot not in _tunable(untouched.history)
    weights = _tunable(pinned(untouched, chosen.id))
    assert weights.pop(chosen.slot) == 1 / untouched.history.totals.tried[chosen.structure]
    assert weights == _tunable(untouched.history)


def test_prompts_show_pinned_programs_first(untouched: Run) -> None:
    front = untouched.history.frontier()
    slowest, chosen = front[-1].id, off_the_frontier(untouched)
    history = pinned(untouched, slowest, chosen)
    for seed in range(5):
        shown = prompt.compose(history.members(), random.Random(seed), prompt.Briefing("a task"))
        text = shown.messages[1]["content"]
        on, off = text.split("Programs on the frontier")[1].split("Further programs to build on")
        first = [part.split("DATA\n")[1].split("\n")[0] for part in (on, off)]
        assert [f'"id": "{item}"' in line for item, line in zip((slowest, chosen), first, strict=True)] == [True, True]
        assert all("people ask to build on this one" in line for line in first)
        assert set(shown.parents[:2]) == {slowest, chosen}
        assert text.count(f'"id": "{slowest}"') == text.count(f'"id": "{chosen}"') == 1


def never_paused(state: ProgressState) -> None:
    assert state.phase != "paused"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vortexlab.agent.session._POLL", 0.01)


def test_a_paused_campaign_begins_no_slot_until_it_is_resumed(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    phases: list[tuple[str, int]] = []
    seen: list[str] = []
    pause = once("evaluating", 3, lambda: requests.pause("run", tmp_path))

    def go_on() -> None:
        run = Run.open("run", tmp_path)
        seen.append(run.state)
        receipt = requests.propose(MINE, "run", tmp_path)
        on = f"which is paused; go on with `vortex resume {tmp_path / 'run'}`"
        assert receipt.message == f"Mine takes the next slot of run run, {on}"
        requests.resume("run", tmp_path)

    resume = once("paused", 4, go_on)

    display = Display(config(tmp_path, evaluations=6))

    def watch(state: ProgressState) -> None:
        display(state)
        phases.append((state.phase, state.recorded))
        pause(state)
        resume(state)

    summary = Campaign(config(tmp_path, evaluations=6), evaluator=FakeEvaluator()).run(watch)
    at = phases.index(("paused", 4))
    assert phases[at - 1 : at + 2] == [("recorded", 4), ("paused", 4), ("proposing", 4)]
    assert [line.endswith(": paused") for line in capsys.readouterr().err.splitlines()].count(True) == 1
    assert seen == ["paused"] and summary.state.evaluations == 6
    run = Run.open("run", tmp_path)
    assert run.trials[4].proposal.name == "Mine" and run.state == "finished" and not run.history.notes


def test_a_signal_ends_a_pause_and_starting_again_clears_it(tmp_path: Path, quick: None) -> None:
    pause = once("evaluating", 3, lambda: requests.pause("run", tmp_path))
    stop = once("paused", 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    summary = Campaign(config(tmp_path, evaluations=6), evaluator=FakeEvaluator()).run(lambda s: (pause(s), stop(s))[0])
    assert summary.reason == "stopped while it was paused"
    assert Run.open("run", tmp_path).state == "finished" and len(Run.open("run", tmp_path).trials) == 4
    Campaign.resume("run", tmp_path, evaluator=FakeEvaluator()).run(never_paused)
    run = Run.open("run", tmp_path)
    assert len(run.trials) == 6 and not run.history.paused
    assert run.history.notes == ["the campaign was paused when it ended; starting it again ended the pause"]


def test_a_pause_that_nobody_took_does_not_block_the_next_session(tmp_path: Path) -> None:
    Campaign(config(tmp_path, evaluations=3), evaluator=FakeEvaluator()).run()
    folder = tmp_path / "run"
    inbox.send(folder, {"kind": "pause"})
    (file,) = inbox.waiting(folder)
    os.utime(file, (1.0, 1.0))
    again = Campaign.resume("run", tmp_path, evaluations=5, evaluator=FakeEvaluator())
    assert again.run(never_paused).state.evaluations == 5
    run = Run.open("run", tmp_path)
    assert run.history.notes == ["`vortex pause` was refused: it was asked of an earlier session of the campaign"]
    assert not inbox.waiting(folder)


def test_a_pause_takes_nothing_from_the_hours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    waits: list[float] = []

    class Slow(FakeEvaluator):
        def evaluate(self, source: str, knobs: dict[str, Any] | None = None, *, fidelity: str = "full") -> Verdict:
            clock.now += 600
            return super().evaluate(source, knobs, fidelity=fidelity)

    def sleep(seconds: float) -> None:
        clock.now += 3600
        waits.append(seconds)
        if len(waits) == 2:
            requests.resume("run", tmp_path)

    fake = SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep)
    monkeypatch.setattr("vortexlab.agent.session.time", fake)
    states: list[ProgressState] = []
    pause = once("evaluating", 1, lambda: requests.pause("run", tmp_path))
    settings = config(tmp_path, evaluations=None, hours=0.5)
    summary = Campaign(settings, evaluator=Slow()).run(lambda state: (states.append(state), pause(state))[0])
    assert summary.reason == "the budget is spent: 0.5 hours" and summary.state.recorded == 3 and len(waits) == 2
    assert [s.seconds for s in states if s.phase in ("recorded", "paused")] == pytest.approx([600, 1200, 1200, 1800])


def test_the_recorded_time_of_work_leaves_pauses_out() -> None:
    def at(time: int, what: str, **data: Any) -> Event:
        return Event(time, time, what, data)

    history = History.of([
        at(1000, "campaign_started"), at(1010, "request", id="a", kind="pause"), at(1060, "note", text="later"),
        at(1110, "request", id="b", kind="resume"), at(1115, "note", text="work"),
    ])  # fmt: skip
    assert history.seconds == 15 and history.idle == 100
    history.add(at(1120, "request", id="c", kind="pause"))
    history.add(at(1190, "campaign_finished", reason="stopped"))
    assert history.seconds == 20 and history.paused
    history.add(at(5000, "campaign_resumed"))
    history.add(at(5007, "note", text="work"))
    assert history.seconds == 27 and not history.paused


def test_whatever_lies_in_the_inbox_ends_no_campaign(tmp_path: Path, untouched: Run) -> None:
    folder = tmp_path / "run"
    garbage: dict[str, bytes | str] = {
        "not-json": b"\xff\xfe{", "list": "[1, 2]", "deep": "[" * 100_000, "long-number": "1" * 10_000,
        "no-kind": "{}", "kind": '{"kind": "stop"}', "kind-of-list": '{"kind": ["propose"]}',
        "no-source": '{"kind": "propose"}', "bare": '{"kind": "propose", "source": "print(1)"}',
        "surrogate": '{"kind": "propose", "source": "\\ud800"}',
        "knob": json.dumps({"kind": "propose", "source": MINE, "knobs": {"sinks": 1}}),
        "knob-value": json.dumps({"kind": "propose", "source": MINE, "knobs": {"recent": [1]}}),
        "trial": '{"kind": "pin", "trial": "t0999"}', "no-trial": '{"kind": "unpin"}',
        "large": "x" * ((1 << 20) + 1),
    }  # fmt: skip

    def litter() -> None:
        box = folder / inbox.INBOX
        box.mkdir()
        for name, content in garbage.items():
            (box / f"{name}.json").write_bytes(content if isinstance(content, bytes) else content.encode())
        (box / "folder.json").mkdir()
        (box / "nowhere.json").symlink_to(tmp_path / "nowhere")
        os.mkfifo(box / "pipe.json")
        (box / ".draft").write_text("half a requ")
        (box / "readme.txt").write_text("not for us")

    watch = once("evaluating", 2, litter)
    Campaign(config(tmp_path, evaluations=EVALUATIONS), evaluator=FakeEvaluator()).run(watch)
    run = Run.open("run", tmp_path)
    assert story(run) == story(untouched) and not run.history.asked
    noted = [*garbage, "folder", "nowhere", "pipe"]
    assert sorted(event.data["id"] for event in run.events("request")) == sorted(noted)
    assert len(run.history.notes) == len(noted) and all("\n" not in note for note in run.history.notes)
    assert "folder.json in the inbox is no request: it is no plain file" in run.history.notes
    assert any("has no knob 'sinks'" in note for note in run.history.notes)
    assert sorted(path.name for path in (folder / inbox.INBOX).iterdir()) == [".draft", "folder.json", "readme.txt"]
    assert run.status()["waiting"] == []


def test_only_accepted_programs_are_pinned(untouched: Run, tmp_path: Path) -> None:
    class Rejecting(FakeEvaluator):
        def evaluate(self, source: str, knobs: dict[str, Any] | None = None, *, fidelity: str = "full") -> Verdict:
            return self._stopped(super().evaluate(source, knobs), "rejected", "screen", "keeps nothing")

    Campaign(config(tmp_path, evaluations=1), evaluator=Rejecting()).run()
    with pytest.raises(VortexError, match="t0000 was not accepted, so it cannot be pinned"):
        requests.pin("t0000", "run", tmp_path)
    inbox.send(tmp_path / "run", {"kind": "pin", "trial": "t0000"})
    Campaign.resume("run", tmp_path, evaluations=2, evaluator=Rejecting()).run()
    assert not Run.open("run", tmp_path).history.pinned


def test_a_campaign_of_another_process_waits_and_goes_on(tmp_path: Path) -> None:
    script = Path(__file__).with_name("campaign_fakes.py")
    command = [sys.executable, str(script), str(tmp_path), "0.05", "14", "none"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("evaluating"):
                break
        assert requests.pause("run", tmp_path).running
        for line in process.stdout:
            if line.startswith("paused"):
                break
        run = Run.open("run", tmp_path)
        assert run.state == "paused" and not run.history.running
        assert requests.propose(MINE, "run", tmp_path).running
        assert requests.resume("run", tmp_path).running
        rest = process.stdout.read().splitlines()
    assert process.returncode == 0 and rest[-1].startswith("finished")
    again = Run.open("run", tmp_path)
    assert again.trials[len(run.trials)].proposal.name == "Mine" and again.progress().evaluations == 14
