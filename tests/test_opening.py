"""Numbers written out become knobs, and nothing else changes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from campaign_fakes import FakeEvaluator, config

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.proposers.base import Proposal
from vortexlab.agent.run import Run
from vortexlab.agent.trials import KNOBS
from vortexlab.dsl import canonical_hash, parse, structure_hash
from vortexlab.dsl.testing import random_program
from vortexlab.search_spaces.library import NAMES, source
from vortexlab.search_spaces.opening import opened

FIXED = '''
from vortexlab.dsl import *


@program(page=16)
class Fixed:
    """All numbers written out."""

    def summarize(k):
        parts = k.split(token, part=4)
        return dict(lo=parts.min(token), hi=parts.max(token), mean=k.mean(token))

    def score(q, s):
        near = maximum(q * s.lo, q * s.hi).sum(channel).max(part)
        return (near + 0.25 * dot(q, s.mean, channel)).max(head)

    def select(score, ctx):
        forced = first(1) | last(2)
        return forced | topk(score, 40, among=~forced) | random(9)
'''


class Author:
    """Has one idea, with numbers."""

    name, operators = "author", ("author",)

    def propose(self, history: Any, rng: Any, slot: int, operator: str | None = None) -> Proposal | None:
        return Proposal(FIXED, "Fixed", "author", "author")


def test_every_number_with_a_meaning_becomes_its_knob() -> None:
    program, made = parse(FIXED), parse(opened(FIXED))
    assert made.defaults == {
        "sink": 1, "recent": 2, "budget": 40, "random_pages": 9, "sub": 4, "number1": 0.25,
    }  # fmt: skip
    assert (made.knobs["number1"].low, made.knobs["number1"].high, made.knobs["number1"].log) == (0.03125, 2.0, True)
    assert made.name.startswith("Fixed_") and opened(opened(FIXED)) == opened(FIXED)
    assert canonical_hash(made.bind()) == canonical_hash(program.bind())
    assert canonical_hash(made.bind({"budget": 20})) != canonical_hash(program.bind())


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("first(1) | first(2)", "first(2)"),  # one name, two values
        ("first(9) | last(2)", "first(9)"),  # beyond what `sink` may be
        ("everything()", "everything()"),
    ],
)
def test_what_does_not_fit_a_shared_knob_stays(text: str, kept: str) -> None:
    own = f"@program(page=16)\nclass Own:\n    def select():\n        return {text}\n"
    assert kept in opened(own) and canonical_hash(parse(opened(own)).bind()) == canonical_hash(parse(own).bind())


def test_a_name_that_means_something_else_stays() -> None:
    own = "@program(page=16)\nclass Own:\n    sink = knob.int(0, 3, default=2)\n" \
          "    def select():\n        return first(sink) | last(1) | first(1)\n"  # fmt: skip
    made = parse(opened(own))
    assert made.knobs["sink"].high == 3 and made.defaults == {"sink": 2, "recent": 1}


@pytest.mark.parametrize("name", NAMES)
def test_published_programs_mean_the_same_when_opened(name: str) -> None:
    before, after = parse(source(name)), parse(opened(source(name)))
    assert canonical_hash(before.bind()) == canonical_hash(after.bind())
    assert structure_hash(before) == structure_hash(after) and set(before.knobs) <= set(after.knobs)


def test_random_programs_mean_the_same_when_opened() -> None:
    rng, changed = random.Random(11), 0
    for _ in range(150):
        text = random_program(rng)
        made = opened(text)
        changed += made != text
        assert canonical_hash(parse(text).bind()) == canonical_hash(parse(made).bind())
    assert changed > 30


def test_what_is_no_program_stays_as_it_is() -> None:
    assert opened("no program") == "no program"


def test_a_campaign_tunes_numbers_that_an_author_fixed(tmp_path: Path) -> None:
    asked = config(tmp_path, evaluations=20, seeds=("dense",), knob_share=0.9, structure_share=0.1)
    Campaign(asked, evaluator=FakeEvaluator(), proposers=lambda *_: [Author()]).run()
    trials = Run.open("run", tmp_path).trials
    fixed = next(trial for trial in trials if trial.proposal.source == FIXED)
    tuned = [trial for trial in trials if trial.arm.proposer == KNOBS and trial.proposal.parents == (fixed.id,)]
    assert tuned and all(trial.structure == fixed.structure and not fixed.knobs for trial in tuned)
    budgets = {trial.knobs["budget"] for trial in trials if trial.structure == fixed.structure and trial.knobs}
    assert len(budgets) > 3
