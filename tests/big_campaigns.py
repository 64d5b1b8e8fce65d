"""A night's campaign within seconds: as many recorded trials as wanted, with made-up numbers and a made-up clock.

Events go through `Store.append`, so whatever form a record has, this has it too. Run as a script it records one
campaign: ``python big_campaigns.py FOLDER TRIALS``.
"""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from campaign_fakes import FakeEvaluator, config

from vortexlab.agent import store as store_module
from vortexlab.agent.arms import Arm
from vortexlab.agent.pool import FULL
from vortexlab.agent.prepared import prepare
from vortexlab.agent.proposers.base import Proposal
from vortexlab.agent.store import Store
from vortexlab.agent.study import draw
from vortexlab.agent.trials import KNOBS, SEED, History, known_structures
from vortexlab.dsl import parse
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.config import versions
from vortexlab.evaluator.statistics import accuracy
from vortexlab.evaluator.verdict import Verdict, split
from vortexlab.search_spaces.grammar import OPERATORS, mutate
from vortexlab.search_spaces.library import seeds

PROPOSERS = ("grammar", "large-model", "small-model")
SECONDS = 3.0  # of made-up time that one trial takes


class Tasked(FakeEvaluator):
    """`FakeEvaluator` whose verdicts have scores by task too."""

    def evaluate(self, source: str, knobs: dict[str, Any] | None = None, **others: Any) -> Verdict:
        verdict = super().evaluate(source, knobs, **others)
        if not verdict.outcomes:
            return verdict
        found = accuracy(verdict.outcomes, draws=100)
        return replace(verdict, per_task=found.per_task, accuracy=found.kept or verdict.accuracy)


class _Clock:
    """In the place of the store's clock: the work of a night, without the night."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def time(self) -> float:
        self.now += SECONDS / 3  # three events a trial
        return self.now


def record_night(runs: Path, trials: int, name: str = "night", seed: int = 0) -> Path:
    """A finished campaign of so many trials: the seeds, then new structures and new knobs. Returns its folder."""
    rng, evaluator = random.Random(seed), Tasked()
    settings = config(runs, name=name, evaluations=trials)
    started = {"config": settings.to_json(), "environment": "fake", "versions": versions(),
               "seed_structures": sorted(known_structures(History()))}  # fmt: skip
    with patch.object(store_module, "time", _Clock()), Store.create(settings.folder, started) as store:
        store._connection.execute("PRAGMA synchronous = OFF")  # nothing here must survive a power cut
        accepted: list[tuple[str, Proposal]] = []
        front: list[tuple[float, float]] = []
        known: set[str] = set()
        hashes: set[str] = set()
        library = iter(seeds().values())
        slot = 0
        while slot < trials:
            made = _proposed(next(library, None), accepted, rng, known)
            if made is None or made.hash in hashes:
                continue
            hashes.add(made.hash)
            known.add(made.structure)
            verdict = evaluator.evaluate(made.proposal.source, dict(made.proposal.knobs))
            key = f"{slot}"
            store.append("proposal", made.to_json(), slot=slot)
            store.append("trial_started", {"knobs": dict(made.proposal.knobs), "key": key}, slot=slot)
            head, rest = split(verdict.to_json())
            found = {"fidelity": FULL, "environment": "fake", "verdict": head}
            store.append("verdict", found, slot=slot, key=key, detail={"verdict": rest})
            if verdict.accepted and verdict.speedup and verdict.accuracy:
                point = verdict.speedup.value, verdict.accuracy.value
                leads = not any(a >= point[0] and b >= point[1] for a, b in front)
                if leads:
                    front = [p for p in front if p[0] > point[0] or p[1] > point[1]] + [point]
                # Parents are the latest leaders or anything else, so that lineages become deep.
                accepted.insert(0 if leads else len(accepted), (f"t{slot:04d}", made.proposal))
            slot += 1
        store.append("campaign_finished", {"reason": f"the budget is spent: {trials} evaluations"})
    return settings.folder


def _proposed(seed: str | None, accepted: list[tuple[str, Proposal]], rng: random.Random, known: set[str]) -> Any:
    if seed is not None:
        return prepare(Proposal(seed, parse(seed).name, SEED, "published"), Arm(SEED, "published"))
    parent, old = rng.choice(accepted[:12]) if rng.random() < 0.6 else rng.choice(accepted)
    program = parse(old.source)
    try:
        if rng.random() < 0.5 and program.knobs:
            knobs = draw(program, rng, tokens=4096)
            proposal = replace(old, knobs=knobs, parents=(parent,), operator="tune", proposer=old.proposer)
            return prepare(proposal, Arm(KNOBS, "tune"))
        made = mutate(old.source, rng, known, (rng.choice(sorted(OPERATORS)),))
        if made is None:
            return None
        who = rng.choice(PROPOSERS)
        fresh = parse(made.source)
        knobs = {name: fresh.knobs[name].check(value) for name, value in old.knobs.items() if name in fresh.knobs}
        proposal = Proposal(made.source, fresh.name, who, made.operator, (parent,), made.note, {}, knobs)
        return prepare(proposal, Arm(who, made.operator))
    except VortexError:
        return None


if __name__ == "__main__":
    folder, count = sys.argv[1:]
    print(record_night(Path(folder), int(count)))
