"""The leaderboard that is kept beside a record: what is computed, of this very record, or nothing."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from campaign_fakes import FakeEvaluator, config
from face_fixtures import NAME, record, vortex

from vortexlab.agent import derived, encoding, glance, status
from vortexlab.agent.assemble import Recorder
from vortexlab.agent.campaign import Campaign
from vortexlab.agent.leaderboard import BOARD
from vortexlab.agent.progress import recorded
from vortexlab.agent.proposers.base import Proposer
from vortexlab.agent.recorded import parts_of
from vortexlab.agent.run import Run
from vortexlab.agent.standings import leaderboard
from vortexlab.agent.store import Store
from vortexlab.agent.trials import History
from vortexlab.evaluator.verdict import Verdict


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    record(tmp_path)
    return tmp_path


def _computed(runs: Path) -> Any:
    return leaderboard(NAME, Run.open(NAME, runs).history)


def _never(*_: object, **__: object) -> Any:
    raise AssertionError("this was to be at hand")


def test_a_campaign_leaves_its_leaderboard_and_nobody_computes_it_again(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = _computed(runs)
    monkeypatch.setattr(Store, "events", _never)
    found = glance.leaderboard(NAME, runs)
    assert found == wanted and found.entries
    assert json.loads(vortex("leaderboard", NAME, "--runs", runs, "--json").out) == wanted.to_json()
    (runs / NAME).rename(runs / "other")
    assert glance.leaderboard("other", runs).run == "other"


def test_a_status_is_kept_and_says_what_is_so_at_this_moment(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Run.open(NAME, runs).status()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "events", _never)
        assert glance.status(NAME, runs) == wanted and wanted["state"] == "finished"
        request = runs / NAME / "inbox" / "1.json"
        request.parent.mkdir(exist_ok=True)
        request.write_text(json.dumps({"kind": "pin", "trial": "t0001"}))
        assert glance.status(NAME, runs)["waiting"] == ["pin t0001"]
        with Store.write(runs / NAME):  # finals and explanations are written into a campaign that has ended
            assert glance.status(NAME, runs)["state"] == "finished"
    with Store.write(runs / NAME) as store:
        store.append("note", {"text": "something new"})
    assert glance.status(NAME, runs)["notes"][-1] == "something new"


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "changed": lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
    "deep": lambda data: zlib.compress(b"[" * 200_000),
    "no object": lambda data: zlib.compress(b"[]"),
    "no rows": lambda data: zlib.compress(
        json.dumps({**json.loads(zlib.decompress(data)), "is": {"conditions": [], "entries": [[]]}}).encode()
    ),
    "other fields": lambda data: zlib.compress(
        json.dumps({**json.loads(zlib.decompress(data)), "of": 1}).encode()
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILED)
def test_one_that_is_damaged_is_computed_anew(runs: Path, how: str) -> None:
    file = runs / NAME / BOARD.file
    before = file.read_bytes()
    file.write_bytes(SPOILED[how](before))
    assert glance.leaderboard(NAME, runs) == _computed(runs)
    assert file.read_bytes() == before


def test_a_status_of_another_form_is_computed_anew(runs: Path) -> None:
    wanted, file = glance.status(NAME, runs), runs / NAME / status.KEPT.file
    for other in ({"x": 1}, [[1]], 5):
        kept = json.loads(zlib.decompress(file.read_bytes()))
        file.write_bytes(zlib.compress(json.dumps({**kept, "is": other}).encode()))
        assert glance.status(NAME, runs) == wanted


def test_one_of_another_record_or_release_is_computed_anew(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.write(runs / NAME) as store:
        store.append("request", {"id": "a", "kind": "pin", "trial": "t0000"})
    assert [entry.id for entry in glance.leaderboard(NAME, runs).entries if entry.pinned] == ["t0000"]
    monkeypatch.setattr(derived, "__version__", "another")
    with Store.read(runs / NAME) as store:
        assert BOARD.load(runs / NAME, store.mark()) is None
    assert glance.leaderboard(NAME, runs) == _computed(runs)


def test_where_nothing_can_be_written_nothing_is_kept(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = runs / NAME / BOARD.file
    file.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError("read-only")))
        assert glance.leaderboard(NAME, runs) == _computed(runs)
    assert not list((runs / NAME).glob(f"*{BOARD.file}*"))
    file.mkdir()
    assert glance.leaderboard(NAME, runs) == _computed(runs)


def test_the_terminal_shows_the_frontier_and_the_next_best(runs: Path) -> None:
    board = glance.leaderboard(NAME, runs)
    shown = len(board.frontier) + 2
    text = vortex("leaderboard", NAME, "--runs", runs, "--limit", str(shown)).out
    rows = [line.split()[:2] for line in text.splitlines() if line.lstrip(" *p").startswith("t0")]
    ids = [next(word for word in row if word.startswith("t0")) for row in rows][:shown]
    rest = board.entries[len(board.frontier) :]
    assert ids[: len(board.frontier)] == [entry.id for entry in board.frontier]
    assert max(entry.rank for entry in rest if entry.id in ids) <= min(e.rank for e in rest if e.id not in ids)
    assert f"{len(board.entries) - shown} more accepted programs are not shown; --limit 0" in text
    assert "not shown" not in vortex("leaderboard", NAME, "--runs", runs, "--limit", "0").out


def test_parts_of_verdicts_are_those_of_the_whole_ones(runs: Path) -> None:
    names = ("outcomes", "state", "conditions", "non_inferiority", "speed_samples")
    trials = Run.open(NAME, runs).trials
    for trial, part in zip(trials, parts_of(trials, names), strict=True):
        assert trial.verdict is not None
        whole = json.loads(json.dumps(trial.verdict.to_json()))
        assert part == {name: whole[name] for name in names}


@pytest.mark.parametrize("inner", [
    {"b": [1, 2], "a": {"x": 1}},
    {"a": {"a": 2}, "b": 'it says "a": 1, and \\"b\\": 2'},
    {"c": {"a": 1, "b": 2}, "a": {}, "b": []},  # the names stand before them too
    {"a": {"x": 1}},
    {},
])  # fmt: skip
def test_parts_are_members_of_their_object_and_no_others(inner: dict[str, Any]) -> None:
    parts = encoding.Parts("verdict", ("a", "b"))
    packed = encoding.pack({"verdict": inner})
    for _ in range(2):
        assert parts.read(packed) == {name: inner[name] for name in ("a", "b") if name in inner}
    assert parts.read(encoding.pack({"verdict": {"a": {"x": 12}, "b": 3}})) == {"a": {"x": 12}, "b": 3}
    with pytest.raises(ValueError, match="Error -3"):
        parts.read(packed[:5] + b"\0\0" + packed[7:])


class Asking(FakeEvaluator):
    """Asks for the status while it evaluates, as somebody at another terminal does."""

    def __init__(self, runs: Path):
        super().__init__()
        self._runs, self.seen = runs, list[dict[str, Any]]()

    def evaluate(self, source: str, knobs: dict[str, Any] | None = None, **others: Any) -> Verdict:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Store, "events", _never)
            self.seen.append(glance.status("run", self._runs))
        run = Run.open("run", self._runs)
        wanted = recorded(run.history, run.config)
        assert self.seen[-1] == status.at_this_moment(self._runs / "run", wanted, True)
        return super().evaluate(source, knobs, **others)


def test_a_campaign_at_work_keeps_its_status_at_hand(tmp_path: Path) -> None:
    evaluator = Asking(tmp_path)
    Campaign(config(tmp_path, evaluations=12), evaluator=evaluator).run()
    assert len(evaluator.seen) >= 12
    assert [found["recorded"] for found in evaluator.seen] == list(range(len(evaluator.seen)))
    assert all(found["state"] == "running" and len(found["pending"]) == 1 for found in evaluator.seen)


def test_what_kills_left_of_a_status_goes_when_the_campaign_goes_on(tmp_path: Path) -> None:
    Campaign(config(tmp_path, evaluations=3), evaluator=FakeEvaluator()).run()
    drafts = [tmp_path / "run" / f".{kept.file}.x1.tmp" for kept in (status.KEPT, BOARD)]
    for draft in drafts:
        draft.write_bytes(b"half")
    Campaign.resume("run", tmp_path, evaluations=4, evaluator=FakeEvaluator()).run()
    assert not any(draft.exists() for draft in drafts) and glance.status("run", tmp_path)["recorded"] == 4


def test_a_disk_that_takes_no_status_stops_no_campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    monkeypatch.setattr("vortexlab.agent.campaign.write_settings", lambda *_: None)
    assert Campaign(config(tmp_path, evaluations=3), evaluator=FakeEvaluator()).run().state.evaluations == 3
    monkeypatch.undo()
    assert glance.status("run", tmp_path)["recorded"] == 3


class Model:
    """A proposer whose language model is asked what the campaign's status is."""

    name, operators = "model", ("write",)

    def __init__(self, runs: Path, record: Recorder):
        self._runs, self._record, self.calls = runs, record, list[int]()

    def propose(self, members: Any, rng: Any, slot: int, operator: str | None) -> None:
        self._record("reserved", {"slot": slot, "model": "m", "tokens": 10, "money": 0.0, "seconds": 1.0})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Store, "events", _never)
            self.calls.append(glance.status("run", self._runs)["calls"])
        request = {"model": "m"}
        self._record("exchange", {"slot": slot, "request": request, "text": "no", "tokens": 10, "seconds": 1.0})


def test_the_status_is_at_hand_while_a_language_model_is_asked(tmp_path: Path) -> None:
    asked: list[Model] = []

    def proposers(record: Recorder, history: History) -> list[Proposer]:
        asked.append(Model(tmp_path, record))
        return [asked[0]]

    settings = config(tmp_path, evaluations=8, seeds=("dense", "quest"), budget_points=(), knob_share=0.0)
    Campaign(settings, evaluator=FakeEvaluator(), proposers=proposers).run()
    assert asked[0].calls == list(range(1, len(asked[0].calls) + 1)) and asked[0].calls


def test_who_opened_a_run_earlier_replaces_nothing_newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Campaign(config(tmp_path, evaluations=3), evaluator=FakeEvaluator()).run()
    earlier = Run.open("run", tmp_path)
    Campaign.resume("run", tmp_path, evaluations=5, evaluator=FakeEvaluator()).run()
    assert earlier.status()["recorded"] == 3 and len(earlier.leaderboard().entries) == 3
    monkeypatch.setattr(Store, "events", _never)
    assert glance.status("run", tmp_path)["recorded"] == 5
    assert len(glance.leaderboard("run", tmp_path).entries) == 5


def test_what_the_record_says_of_the_end_counts_before_the_lock(tmp_path: Path) -> None:
    Campaign(config(tmp_path, evaluations=1), evaluator=FakeEvaluator()).run()
    with Store.read(tmp_path / "run") as store:
        found = status.KEPT.load(tmp_path / "run", store.mark())
    assert found is not None
    unfinished = {**found, "reason": None}
    assert status.at_this_moment(tmp_path / "run", unfinished, True)["state"] == "running"
    assert status.at_this_moment(tmp_path / "run", found, True)["state"] == "finished"
    assert status.at_this_moment(tmp_path / "run", unfinished, False)["state"] == "interrupted"
