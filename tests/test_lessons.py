"""A campaign that learns from an earlier run: its frontier is measured anew, its lessons are told."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from campaign_fakes import FakeEvaluator, config

from vortexlab import settings
from vortexlab.agent import assemble, bandit, prompt
from vortexlab.agent.arms import Arm
from vortexlab.agent.campaign import Campaign
from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.lessons import lessons
from vortexlab.agent.run import Run
from vortexlab.agent.store import Store
from vortexlab.agent.trials import GIVEN, MEMORY, SEED
from vortexlab.dsl.errors import VortexError


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Run:
    runs = tmp_path_factory.mktemp("runs")
    Campaign(config(runs, name="earlier", evaluations=60, seed=4), evaluator=FakeEvaluator()).run()
    return Run.open("earlier", runs)


def again(taught: Run, **changes: object) -> CampaignConfig:
    return config(taught.folder.parent, **{"evaluations": 40, "memory": (lessons(taught),), **changes})


def test_lessons_are_the_frontier_and_what_moves_and_failures_came_to(taught: Run) -> None:
    found = lessons(taught)
    assert found == json.loads(json.dumps(found)) and found["run"] == "earlier"
    front = {member.id: member for member in taught.members() if member.on_frontier}
    assert {item["id"] for item in found["programs"]} <= set(front) and 2 <= len(found["programs"]) <= 12
    speeds = [item["speedup"] for item in found["programs"]]
    assert speeds == sorted(speeds, reverse=True)
    for item in found["programs"]:
        assert (item["source"], item["knobs"]) == (front[item["id"]].source, dict(front[item["id"]].knobs))
    moves = [line for line in found["lines"] if "move" in line]
    assert moves and moves[0]["gained"] > 0 and all(line["tried"] >= line["accepted"] for line in moves)
    assert any(line.get("stopped_at") == "fidelity" for line in found["lines"])


def test_the_frontier_is_measured_after_the_seeds_and_counts_as_given(taught: Run) -> None:
    Campaign(again(taught, name="later"), evaluator=FakeEvaluator()).run()
    later = Run.open("later", taught.folder.parent)
    arms = [trial.arm.proposer for trial in later.trials]
    first, last = arms.index(MEMORY), len(arms) - 1 - arms[::-1].index(MEMORY)
    assert set(arms[:first]) == {SEED} and set(arms[first : last + 1]) == {MEMORY}
    recalled = [trial for trial in later.trials if trial.arm.proposer == MEMORY]
    known = {trial.hash for trial in taught.trials}
    assert all(trial.arm == Arm(MEMORY, "earlier") and trial.hash in known for trial in recalled)
    assert len({trial.hash for trial in later.trials}) == len(later.trials), "what is a seed here is not measured twice"
    assert MEMORY in GIVEN
    counted = [trial.arm.proposer for trial, *_ in bandit._later(later.history)]
    assert counted and not set(counted) & set(GIVEN)


def test_a_campaign_that_was_taught_resumes_without_the_run_it_learned_from(taught: Run, tmp_path: Path) -> None:
    own = replace(again(taught), runs=str(tmp_path))
    Campaign(replace(own, name="whole"), evaluator=FakeEvaluator()).run()
    Campaign(replace(own, name="parts", evaluations=14), evaluator=FakeEvaluator()).run()
    resumed = Campaign.resume("parts", tmp_path, evaluations=40, evaluator=FakeEvaluator())
    assert resumed.config.memory == own.memory
    resumed.run()
    whole, parts = (Run.open(name, tmp_path) for name in ("whole", "parts"))
    assert [trial.hash for trial in whole.trials] == [trial.hash for trial in parts.trials]
    with pytest.raises(VortexError, match=r"memory is earlier \([0-9a-f]{8}\) there and none here") as refused:
        Campaign(replace(own, name="whole", memory=()))
    assert len(str(refused.value)) < 300, "no program's text"


def test_a_program_of_the_earlier_run_that_is_none_any_more_is_left_out(taught: Run, tmp_path: Path) -> None:
    broken = json.loads(json.dumps(lessons(taught)))
    broken["programs"][0]["source"] = "no program"
    own = replace(again(taught), runs=str(tmp_path), memory=(broken,))
    Campaign(own, evaluator=FakeEvaluator()).run()
    assert Run.open("run", tmp_path).history.evaluated == 40


def test_lessons_stand_in_the_prompt_within_their_share(taught: Run) -> None:
    about = assemble.briefing(again(taught))
    assert all(line["from_run"] == "earlier" for line in about.lessons)
    text = prompt.compose([], random.Random(0), about).messages[1]["content"]
    told = [json.loads(line) for line in text.splitlines() if '"from_run"' in line]
    assert told == [dict(line) for line in about.lessons[: len(told)]] and told
    many = replace(about, lessons=about.lessons * 50)
    text = prompt.compose([], random.Random(0), many).messages[1]["content"]
    shown = [line for line in text.splitlines() if '"from_run"' in line]
    assert len(told) <= len(shown) < len(many.lessons) and sum(map(len, shown)) <= 1500


def test_runs_to_learn_from_are_named_on_the_command_line(taught: Run, tmp_path: Path) -> None:
    runs = taught.folder.parent
    made = settings.campaign_config(runs=runs, memory=["earlier", "earlier"])
    assert made.memory == (lessons(taught),)
    assert CampaignConfig.from_json(json.loads(json.dumps(made.to_json()))) == made
    with pytest.raises(VortexError, match="there is no run 'unknown'"):
        settings.campaign_config(runs=runs, memory=["unknown"])
    with pytest.raises(VortexError, match="no accepted program to learn from"):
        Store.create(tmp_path / "empty", {"config": config(tmp_path).to_json(), "environment": "fake"}).close()
        settings.campaign_config(runs=tmp_path, memory=["empty"])
