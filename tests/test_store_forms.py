"""Older and newer forms of the store: read as they are, brought up once, and refused in one line."""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from campaign_fakes import FakeEvaluator

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.finals import recorded
from vortexlab.agent.migrations import FORM
from vortexlab.agent.run import Run
from vortexlab.agent.store import FILE, Store
from vortexlab.agent.trials import History
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.verdict import Head, Verdict, joined, split

#: A campaign of nine trials with finals and an explanation, made by the last release that wrote form 1.
RECORDED = Path(__file__).with_name("data") / "run_v1.sqlite.gz"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "old"
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(gzip.decompress(RECORDED.read_bytes()))
    return folder


def form(folder: Path) -> int:
    raw = sqlite3.connect(folder / FILE)
    try:
        return int(raw.execute("PRAGMA user_version").fetchone()[0])
    finally:
        raw.close()


def whole_story(folder: Path) -> dict[str, Any]:
    run = Run.open(folder.name, folder.parent)
    return {
        "leaderboard": run.leaderboard().to_json(),
        "members": [run.member(trial.id) for trial in run.trials],
        "finals": [row.to_json() for row in recorded(run)],
        "ablated": {mark: verdict.to_json() for mark, verdict in run.history.ablated.items()},
    }


def test_form_1_reads_without_being_written_and_says_what_it_says_as_form_2(old: Path) -> None:
    content = (old / FILE).read_bytes()
    before = whole_story(old)
    assert (old / FILE).read_bytes() == content and form(old) == 1
    raw = sqlite3.connect(old / FILE)
    found = raw.execute("SELECT data FROM events WHERE kind = 'verdict' ORDER BY seq")
    verdicts = [json.loads(data)["verdict"] for (data,) in found]
    raw.close()
    assert [row["verdict"] for row in before["members"]] == verdicts  # as form 1 had them, word for word
    assert before["finals"][0]["verdict"]["outcomes"] and before["ablated"]

    Store.write(old).close()
    assert form(old) == FORM == 2
    assert whole_story(old) == before


def test_only_verdicts_change_and_the_record_stays_append_only(old: Path) -> None:
    with Store.read(old) as store:
        read = list(store.events())
    Store.write(old).close()
    with Store.read(old) as store:
        assert list(store.events()) == read
    raw = sqlite3.connect(old / FILE)
    kinds = {kind for (kind,) in raw.execute("SELECT DISTINCT kind FROM events WHERE detail IS NOT NULL")}
    assert kinds == {"verdict", "final", "ablation"}
    for statement in ("UPDATE events SET data = '{}'", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            raw.execute(statement)
    assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    raw.close()


def test_a_migration_that_fails_leaves_the_file_as_it_was(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = whole_story(old)
    raw = sqlite3.connect(old / FILE)
    raw.execute("CREATE TRIGGER stopped BEFORE UPDATE ON events WHEN 0 BEGIN SELECT 1; END")
    raw.close()
    monkeypatch.setattr("vortexlab.agent.migrations._TRIGGERS", ("CREATE TRIGGER broken BEFORE UPDATE ON nowhere",))
    with pytest.raises(VortexError, match=f"vortex doctor {old}`"):
        Store.write(old)
    monkeypatch.undo()
    assert form(old) == 1 and whole_story(old) == before
    Store.write(old).close()
    assert form(old) == FORM and whole_story(old) == before


def test_a_log_that_a_kill_left_beside_form_1_is_part_of_it(old: Path, tmp_path: Path) -> None:
    raw = sqlite3.connect(old / FILE)
    raw.execute("PRAGMA journal_mode = WAL")
    raw.execute("INSERT INTO events (time, kind, data) VALUES (0, 'note', '{\"text\": \"last words\"}')")
    raw.commit()
    killed = Path(shutil.copytree(old, tmp_path / "killed"))
    raw.close()
    assert (killed / f"{FILE}-wal").stat().st_size > 0
    with Store.read(killed) as store:
        read = list(store.events())
    assert read[-1].data == {"text": "last words"}
    with Store.write(killed) as store:
        assert list(store.events()) == read
    assert form(killed) == FORM


def test_form_1_is_resumed(old: Path, tmp_path: Path) -> None:
    other = tmp_path / "runs" / "new"
    shutil.copytree(old, other)
    Store.write(other).close()
    for folder in (old, other):
        evaluator = FakeEvaluator()
        Campaign.resume(folder.name, str(folder.parent), evaluations=14, evaluator=evaluator).run()
        run = Run.open(folder.name, folder.parent)
        assert [source for source, _ in evaluator.calls] == [trial.proposal.source for trial in run.trials[9:]]
    one, two = (Run.open(folder.name, folder.parent) for folder in (old, other))
    assert one.history.evaluated == 14
    assert [entry.to_json() for entry in one.leaderboard().entries] == [
        entry.to_json() for entry in two.leaderboard().entries
    ]
    assert [trial.verdict for trial in one.trials] == [trial.verdict for trial in two.trials]


def test_a_newer_form_is_one_line_that_names_its_release(old: Path) -> None:
    raw = sqlite3.connect(old / FILE)
    started = {"config": {}, "versions": {"vortexlab": "9.1.0"}}
    raw.execute("INSERT INTO events (time, kind, data) VALUES (0, 'campaign_resumed', ?)", (json.dumps(started),))
    raw.execute("PRAGMA user_version = 7")
    raw.commit()
    raw.close()
    content = (old / FILE).read_bytes()
    for opening in (Store.read, Store.write):
        with pytest.raises(VortexError) as caught:
            opening(old)
        line = str(caught.value)
        assert "has form 7, written by release 9.1.0" in line and "reads forms up to 2" in line and "\n" not in line
    assert (old / FILE).read_bytes() == content


def test_what_a_fold_needs_is_in_the_heads_and_the_rest_is_read_when_asked_for(old: Path) -> None:
    Store.write(old).close()
    raw = sqlite3.connect(old / FILE)
    raw.execute("DROP TRIGGER no_update")
    raw.execute("UPDATE events SET detail = substr(detail, 1, 30) WHERE kind = 'verdict' AND slot = 2")
    raw.commit()
    raw.close()
    with Store.read(old) as store:
        history = History.of(store.events())
    assert history.evaluated == 8 and history.frontier() and history.totals.funnel()["accuracy"] == 8
    held = history.trials[3].verdict
    assert history.trials[3].verdict is held
    with pytest.raises(VortexError, match=r"event \d+, of kind verdict, is damaged .* `vortex doctor .*/old`"):
        assert history.trials[2].verdict


def test_a_verdict_is_split_and_joined_without_loss(old: Path) -> None:
    evaluator = FakeEvaluator()
    with Store.read(old) as store:
        trials = History.of(store.events()).trials
    for trial in trials:
        verdict = evaluator.evaluate(trial.proposal.source, dict(trial.knobs))
        plain = json.loads(json.dumps(verdict.to_json()))
        head, detail = split(plain)
        assert joined(head, detail) == plain and Verdict.from_json(joined(head, detail)) == verdict
        assert Head.from_json(json.loads(json.dumps(head))) == Head.of(verdict) == trial.head
        assert head == json.loads(json.dumps(Head.of(verdict).to_json()))
        assert not {"outcomes", "stages", "conditions", "gates"} & head.keys()
    with pytest.raises(ValueError, match="verdict form of version 9"):
        Head.from_json({**head, "version": 9})
