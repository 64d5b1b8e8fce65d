"""The commands that read a recorded campaign, each output against its documented form."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from campaign_fakes import FakeEvaluator, config
from face_fixtures import EVALUATIONS, NAME, record, vortex

from vortexlab.agent import glance
from vortexlab.agent.campaign import Campaign
from vortexlab.agent.proposers.base import Proposal
from vortexlab.agent.run import Run
from vortexlab.cli.output import printable, table
from vortexlab.cli.schemas import OUTPUTS, spelled


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    record(folder)
    return folder


def test_status_says_how_the_campaign_stands(runs: Path) -> None:
    found = vortex("status", NAME, "--runs", runs, "--json").json("status")
    assert (found["run"], found["state"], found["evaluations"]) == (NAME, "finished", EVALUATIONS)
    assert found["funnel"]["accuracy"] == found["accepted"] > 0
    assert sum(arm["slots"] for arm in found["arms"]) == found["recorded"]
    text = vortex("status", NAME, "--runs", runs).out
    assert "finished: the budget is spent" in text and "who proposed what" in text


def test_status_shows_who_had_the_most_slots(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two moves at once is an arm: a night has hundreds."""
    found = glance.status(NAME, runs)
    arms = [{"proposer": "grammar", "operator": f"o{n:02}", "slots": n % 30, "accepted": 0, "gain": 0.0, "cost": 1.0}
            for n in range(60)]  # fmt: skip
    monkeypatch.setattr(glance, "status", lambda *_: {**found, "arms": arms})
    text = vortex("status", "--runs", runs).out
    assert [n for n in range(60) if f" o{n:02} " in text] == [*range(20, 30), *range(50, 60)]
    assert "40 more, who had fewer slots, are not shown" in text


def test_cells_of_a_table_stand_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    table("a title", ("name", "n"), [("\u4e2d\u6587", "1"), ("a\x1bb", "200")], right=("n",))
    assert capsys.readouterr().out == "a title\nname    n\n\u4e2d\u6587    1\na\N{REPLACEMENT CHARACTER}b   200\n"
    table("", ("name", "n"), [])
    assert capsys.readouterr().out == "name  n\n"


def test_leaderboard_in_three_forms(runs: Path) -> None:
    found = vortex("leaderboard", "--runs", runs, "--json").json("leaderboard")
    assert set(found) == {"run", "entries"}
    fronts = [entry["on_frontier"] for entry in found["entries"]]
    assert fronts == sorted(fronts, reverse=True) and any(fronts) and not all(fronts)
    table = list(csv.DictReader(io.StringIO(vortex("leaderboard", "--runs", runs, "--csv").out)))
    assert [row["id"] for row in table] == [entry["id"] for entry in found["entries"]]
    assert float(table[0]["speedup_low"]) == found["entries"][0]["speedup"]["low"]
    text = vortex("leaderboard", "--runs", runs).out
    assert all(entry["id"] in text for entry in found["entries"])
    assert Run.open(NAME, runs).leaderboard().closing_lines()[-1] == text.splitlines()[-1]
    assert len(vortex("leaderboard", "--runs", runs, "--limit", "2").out) < len(text)


def test_show_holds_text_lineage_and_measurements(runs: Path) -> None:
    entries = vortex("leaderboard", "--runs", runs, "--json").json("leaderboard")["entries"]
    child = next(entry["id"] for entry in entries if entry["new"] and entry["operator"] != "random")
    found = vortex("show", NAME, child, "--runs", runs, "--json").json("show")
    assert found["id"] == child and "@program" in found["source"] and found["verdict"]["status"] == "accepted"
    assert found["parents"][0] in [item["id"] for item in found["lineage"]]
    text = vortex("show", child.removeprefix("t"), "--runs", runs).out
    assert found["source"].strip() in text and found["hash"] in text and found["lineage"][0]["name"] in text


def test_compare_pairs_programs_on_their_contexts(runs: Path) -> None:
    found = vortex("compare", "t0001", "t0005", "t0000", "--runs", runs, "--json").json("compare")
    base, quest, dense = found["members"]
    assert base["speedup_difference"] is None and base["distance"] == 0
    for item in (quest, dense):
        gap = item["accuracy_difference"]
        assert gap["value"] == pytest.approx(item["accuracy"]["value"] - base["accuracy"]["value"])
        assert gap["low"] <= gap["value"] <= gap["high"] and gap["low"] < gap["high"]
        assert item["shared_contexts"] == 24 and 0 < item["distance"] <= 1
    text = vortex("compare", NAME, "t0001", "t0005", "--runs", runs).out
    assert "--- t0001" in text and "+class Quest:" in text
    assert "different trials" in vortex("compare", "t0001", "1", "--runs", runs).complaint()


def test_ask_prints_the_prompt_and_changes_nothing(runs: Path) -> None:
    before = (runs / NAME / "campaign.sqlite").read_bytes()
    found = vortex("ask", "--runs", runs, "--json").json("ask")
    assert found["slot"] == len(Run.open(NAME, runs).trials) and found["messages"][0]["role"] == "system"
    assert found["messages"][-1]["content"].rstrip() in vortex("ask", "--runs", runs).out
    assert (runs / NAME / "campaign.sqlite").read_bytes() == before


def test_the_run_left_out_is_the_newest(tmp_path: Path) -> None:
    record(tmp_path, "older", 3)
    record(tmp_path, "newer", 2)
    for words in ((), ("latest",)):
        assert vortex("status", *words, "--runs", tmp_path, "--json").json("status")["run"] == "newer"
    assert vortex("status", "older", "--runs", tmp_path, "--json").json("status")["run"] == "older"
    assert vortex("show", "older", "2", "--runs", tmp_path, "--json").json("show")["run"] == "older"
    assert vortex("status", tmp_path / "older", "--json").json("status")["run"] == "older"


def test_control_characters_of_a_model_do_not_reach_the_terminal(tmp_path: Path) -> None:
    assert printable("a\x1b[2Jb\x07\n\tc") == "a\ufffd[2Jb\ufffd\n\tc"
    source = "@program(page=16)\nclass Odd:\n    def select():\n        return first(3)\n"
    campaign = Campaign(config(tmp_path, evaluations=4, seeds=("dense",)), evaluator=FakeEvaluator())
    campaign.submit(Proposal(source, "Odd", "handoff", "tell", hypothesis="\x1b]0;title\x07faster"))
    shown = vortex("show", "0", "--runs", tmp_path).out
    assert "title\ufffdfaster" in shown and "\x1b" not in shown


@pytest.mark.parametrize("command", sorted(OUTPUTS))
def test_the_schemas_in_the_documentation_are_current(command: str, repo_root: Path) -> None:
    file = repo_root / "docs" / "schemas" / f"{command}.json"
    assert file.read_text() == spelled(command), "run `python -m vortexlab.cli.schemas docs/schemas`"
