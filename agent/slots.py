"""What the next slot of a campaign tries: what people proposed, the seeds, then what the bandit's arm comes up with.

Everything is decided from (campaign seed, slot, recorded events), so the same campaign proposes the same programs,
killed and resumed or not. A slot is never lost: a proposer that fails leaves it to a typed mutation, and when no new
structure is to be had the slot goes to new knobs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vortexlab.agent import bandit, study
from vortexlab.agent.arms import Arm
from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.prepared import Prepared, prepare
from vortexlab.agent.proposers.base import Proposal, Proposer, ProposerError
from vortexlab.agent.trials import HANDOFF, KNOBS, MEMORY, SEED, History, Trial
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Attr, Program
from vortexlab.search_spaces.knobs import is_shared
from vortexlab.search_spaces.library import source as seed_source
from vortexlab.search_spaces.opening import opened
from vortexlab.search_spaces.parsed import parsed

SAMPLER = "sampler"  # the one operator of the arm `KNOBS`
_ASKS, _DRAWS = 8, 64  # tries of the sampler, and then at random, until knobs are new
# Failures in a row that close a proposer, for how many slots, and how often that doubles while it goes on failing.
_BREAKER, _COOL_DOWN, _DOUBLINGS = 3, 10, 4

#: (slot, proposer, reason, permanent): records that a proposer could not deliver.
OnFailure = Callable[[int, str, str, bool], None]


def seed_plan(config: CampaignConfig) -> list[Prepared]:
    """The library's programs with their default knobs, then those with a page budget at the budget points, then the
    frontiers of earlier runs."""
    plan = [_seed(name, {}) for name in config.seeds]
    for share in config.budget_points:
        for name in config.seeds:
            knobs = _budget(parsed(seed_source(name)), share, max(config.evaluation.lengths))
            if knobs:
                plan.append(_seed(name, knobs))
    recalled = [_recalled(taught["run"], item) for taught in config.memory for item in taught["programs"]]
    plan += [item for item in recalled if item is not None]
    seen: set[str] = set()
    return [item for item in plan if item.hash not in seen and not seen.add(item.hash)]  # type: ignore[func-returns-value]


def _seed(name: str, knobs: Mapping[str, Attr]) -> Prepared:
    text = seed_source(name)
    operator = "default" if not knobs else "budget-point"
    return prepare(Proposal(text, parsed(text).name, SEED, operator, knobs=knobs), Arm(SEED, operator))


def _recalled(run: str, item: Mapping[str, Any]) -> Prepared | None:
    """None for a program of an earlier run that is none any more."""
    try:
        note = f"On the frontier of run {run} as {item['id']}."
        proposal = Proposal(item["source"], item["name"], MEMORY, run, hypothesis=note, knobs=item["knobs"])
        return prepare(proposal, Arm(MEMORY, run))
    except VortexError:
        return None


def _budget(program: Program, share: float, tokens: int) -> dict[str, Attr]:
    """The page budget that is `share` of a context, within the knob's range; empty without such a knob."""
    page = program.bind().page_size
    wanted = {"budget": max(1, round(share * tokens / page)), "fraction": share}
    values: dict[str, Attr] = {}
    for name, value in wanted.items():
        knob = program.knobs.get(name)
        if knob is not None and is_shared(knob):
            assert knob.low is not None and knob.high is not None
            values[name] = min(max(value, knob.low), knob.high)
    return values


class Slots:
    """Decides slot after slot. `fallback` makes typed mutations when a proposer fails."""

    def __init__(
        self, config: CampaignConfig, proposers: Sequence[Proposer], fallback: Proposer, on_failure: OnFailure
    ):
        self.config, self.proposers, self.fallback, self.on_failure = config, list(proposers), fallback, on_failure
        self._plan = seed_plan(config)
        self._by_name = {proposer.name: proposer for proposer in self.proposers}
        self._tuner = study.Tuner()

    def propose(self, history: History) -> Prepared | None:
        """What the next slot evaluates; None when there is nothing left that was not evaluated already."""
        slot, seen = history.next_slot, history.hashes()
        for item in (*map(Prepared.from_json, history.asked), *self._plan):
            if item.hash not in seen:
                return item
        if not self._by_name:
            return None
        arm = bandit.choose(
            history, self._arms(history, slot), self._rng("arm", slot),
            structure_share=self.config.structure_share, knob_share=self.config.knob_share,
        )  # fmt: skip
        made = None
        if arm.proposer == KNOBS:
            made = self._knobs(history, slot)
        elif not any(item["slot"] == slot and item["proposer"] == arm.proposer for item in history.failures):
            made = self._ask(self._by_name[arm.proposer], arm, history, slot)
        return made or self._mutation(history, slot) or self._knobs(history, slot)

    def _rng(self, *path: str | int) -> random.Random:
        return random.Random(study.derive(self.config.seed, *path))

    def _arms(self, history: History, slot: int) -> dict[str, tuple[str, ...]]:
        arms = {p.name: tuple(p.operators) for p in self.proposers if not self._closed(p.name, history, slot)}
        if _tunable(history):
            arms[KNOBS] = (SAMPLER,)
        return arms or {self.fallback.name: tuple(self.fallback.operators)}

    def _closed(self, name: str, history: History, slot: int) -> bool:
        """The circuit breaker: closed for good by a permanent failure, for a while by several in a row."""
        session = len(history.sessions)
        failures = [
            item for item in history.failures
            if item["proposer"] == name and item["session"] == session and item["slot"] < slot
        ]  # fmt: skip
        if any(item["permanent"] for item in failures):
            return True
        worked = next((trial.slot for trial in reversed(history.trials) if trial.arm.proposer == name), -1)
        recent = [item["slot"] for item in failures if item["slot"] > worked]
        if len(recent) < _BREAKER:
            return False
        return slot < recent[-1] + _COOL_DOWN * 2 ** min(len(recent) - _BREAKER, _DOUBLINGS)

    def _ask(self, proposer: Proposer, arm: Arm, history: History, slot: int) -> Prepared | None:
        """A new program from the proposer; None, recorded as a failure where it is one, when there is none."""
        try:
            proposal = proposer.propose(history.members(), self._rng("proposal", slot), slot, arm.operator)
            if proposal is None:
                return None
            made = prepare(proposal, arm)
        except ProposerError as error:
            self.on_failure(slot, proposer.name, str(error), error.permanent)
            return None
        except VortexError as error:
            self.on_failure(slot, proposer.name, f"the proposed text is no program: {error}", False)
            return None
        except Exception as error:  # a night's campaign must not end over a fault in one of several proposers
            self.on_failure(slot, proposer.name, f"{type(error).__name__}: {error}", False)
            return None
        return made if made.hash not in history.hashes() else None

    def _mutation(self, history: History, slot: int) -> Prepared | None:
        proposal = self.fallback.propose(history.members(), self._rng("fallback", slot), slot, None)
        if proposal is None:
            return None
        made = prepare(proposal, Arm(self.fallback.name, proposal.operator))
        return made if made.hash not in history.hashes() else None

    def _knobs(self, history: History, slot: int) -> Prepared | None:
        """New knobs for an accepted program: from the sampler, or at random when that only repeats itself."""
        targets, rng = _tunable(history), self._rng("target", slot)
        seen, tokens = history.hashes(), max(self.config.evaluation.lengths)
        while targets:
            target = rng.choices(list(targets), weights=list(targets.values()))[0]
            trial = history.trials[target]
            text = opened(trial.proposal.source)
            program = parsed(text)
            for attempt in range(_ASKS + _DRAWS):
                if attempt < _ASKS:
                    values = self._tuner.ask(
                        history.trials, program, trial.structure,
                        tokens=tokens, seed=self.config.seed, slot=slot, attempt=attempt,
                    )  # fmt: skip
                else:
                    values = study.draw(program, rng, tokens=tokens)
                made = _retuned(trial, text, values)
                if made is not None and made.hash not in seen:
                    return made
            del targets[target]
        return None


def _retuned(trial: Trial, text: str, values: Mapping[str, Attr]) -> Prepared | None:
    """The trial's program, its numbers opened, with other knobs; None where the knobs do not go together (a split that
    does not divide)."""
    proposal = Proposal(
        text, parsed(text).name, KNOBS, SAMPLER, (trial.id,), knobs=values,
        label=trial.proposal.label,
    )  # fmt: skip
    try:
        return prepare(proposal, Arm(KNOBS, SAMPLER))
    except VortexError:
        return None


def _tunable(history: History) -> dict[int, float]:
    """Slots of accepted trials whose program has knobs or numbers to open, with their weights.

    The frontier and what people pinned come first, structures that were tried often come last; a structure off the
    frontier keeps a chance while it has only its first numbers.
    """
    totals = history.totals
    weights = {
        trial.slot: 0.25 for trial in totals.alone.values() if _has_knobs(trial) and trial.arm.proposer != HANDOFF
    }  # fmt: skip
    pinned = [history.trials[slot] for slot in history.pinned if history.trials[slot].point]
    chosen = [trial for trial in (*totals.front, *pinned) if _has_knobs(trial)]
    weights |= {trial.slot: 1.0 / totals.tried[trial.structure] for trial in chosen}
    return dict(sorted(weights.items()))


def _has_knobs(trial: Trial) -> bool:
    return bool(trial.knobs) or opened(trial.proposal.source) != trial.proposal.source
