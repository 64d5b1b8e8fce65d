"""A recorded campaign as users read it: by name, path or `latest`, with clear lines for what is not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from campaign_fakes import FakeEvaluator, config

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.folders import resolve, run_folders
from vortexlab.agent.run import Run
from vortexlab.agent.store import FILE, Store
from vortexlab.dsl.errors import VortexError


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    Campaign(config(root, name="alpha", evaluations=3), evaluator=FakeEvaluator()).run()
    Campaign(config(root, name="beta", evaluations=26), evaluator=FakeEvaluator()).run()
    (root / "notes").mkdir()
    return root


def test_runs_are_found_by_name_path_and_age(runs: Path) -> None:
    assert [folder.name for folder in run_folders(runs)] == ["beta", "alpha"]
    assert Run.open(runs=runs).name == "beta"
    assert Run.open("alpha", runs).name == Run.open(runs / "alpha").name == "alpha"
    moved = runs / "gamma"
    shutil.copytree(runs / "alpha", moved)
    assert Run.open("gamma", runs).config.name == "gamma"
    shutil.rmtree(moved)


def test_what_is_not_there_is_one_clear_line(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(VortexError, match=r"there is no run 'btea' in .*; did you mean beta\?"):
        resolve("btea", runs)
    with pytest.raises(VortexError, match=r"there is no run 'zzz' in .*; known runs: beta, alpha"):
        resolve("zzz", runs)
    with pytest.raises(VortexError, match=r"there is no run in .*/ yet; start one with `vortex search`"):
        resolve("latest", tmp_path / "nowhere")
    with pytest.raises(VortexError, match=r"there is no trial 't9999' in this run; ids go from t0000 to t00\d\d"):
        Run.open("beta", runs).member("t9999")
    (runs / "broken").mkdir()
    (runs / "broken" / FILE).write_bytes(b"x" * 5000)
    with pytest.raises(VortexError, match="is damaged or no SQLite file"):
        Run.open("broken", runs)
    assert Run.open(runs=runs).name == "beta", "a damaged run must not hide the others"
    shutil.rmtree(runs / "broken")


def test_a_member_has_its_program_its_lineage_and_every_measurement(runs: Path) -> None:
    run = Run.open("beta", runs)
    child = next(t for t in run.trials if t.proposal.parents and t.point)
    found = run.member(child.id)
    assert json.loads(json.dumps(found)) == found
    assert found == run.member(str(child.slot)) == run.member(f"t{child.slot}")
    assert found["source"] == child.proposal.source and found["knobs"] == dict(child.knobs)
    assert found["verdict"]["speedup"]["value"] == child.point[0]  # type: ignore[index]
    assert found["verdict"]["gates"][0]["name"] == "parse"
    assert found["lineage"][0]["id"] == child.proposal.parents[0]
    assert child.id in run.member(child.proposal.parents[0])["children"]
    deepest = max(run.trials, key=lambda t: len(run.lineage(t.id)))
    ancestors = [row["id"] for row in run.lineage(deepest.id)]
    assert len(set(ancestors)) == len(ancestors)
    assert all(run.history.find(a).slot < deepest.slot for a in ancestors)


def test_status_is_json_and_adds_up(runs: Path) -> None:
    run = Run.open("beta", runs)
    status = run.status()
    assert json.loads(json.dumps(status)) == status
    assert status["state"] == "finished" and status["reason"] == "the budget is spent: 26 evaluations"
    assert status["evaluations"] == 26 and status["recorded"] == len(run.trials)
    assert sum(arm["slots"] for arm in status["arms"]) == status["recorded"]
    assert sum(arm["gain"] for arm in status["arms"]) == pytest.approx(status["hypervolume"])


def test_a_run_says_whether_somebody_is_at_work_on_it(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "alpha", tmp_path / "alpha")
    with Store.write(tmp_path / "alpha") as store:
        assert Run.open("alpha", tmp_path).state == "finished"  # finals are written into it, say
        store.append("campaign_resumed", {name: store.first().data[name] for name in ("config", "versions")})
        assert Run.open("alpha", tmp_path).state == "running"
    assert Run.open("alpha", tmp_path).state == "interrupted"


def test_the_table_has_one_row_for_each_program(runs: Path) -> None:
    run = Run.open("beta", runs)
    table = run.to_pandas()
    assert list(table["id"]) == [member.id for member in run.members()]
    measured = table[table["status"] == "accepted"]
    assert (measured["speedup_low"] <= measured["speedup"]).all() and measured["accuracy"].notna().all()
    assert table["on_frontier"].sum() == len(run.leaderboard().frontier) == run.progress().frontier
    assert set(table.columns) >= {"density", "device", "knobs", "source", "proposer", "operator", "parents", "new"}


def test_the_settings_lie_beside_the_record_for_people(runs: Path) -> None:
    assert json.loads((runs / "beta" / "config.json").read_text()) == Run.open("beta", runs).config.to_json()
    assert not list((runs / "beta").glob("*-wal")), "a finished run is one plain file"
