"""Proposals without a language model: typed mutation, crossover and random typed programs."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from vortexlab.agent.novelty import is_worth_a_slot, simpler
from vortexlab.agent.proposers.base import Member, Proposal
from vortexlab.dsl import structure_hash
from vortexlab.dsl.errors import VortexError
from vortexlab.search_spaces.grammar import OPERATORS, Offspring, cross, mutate
from vortexlab.search_spaces.library import seeds
from vortexlab.search_spaces.parsed import parsed

CROSS, FRESH, SIMPLIFY = "cross", "random", "simplify"
_RANDOM_ATTEMPTS = 20
_NOVEL_ATTEMPTS = 4


class GrammarProposer:
    """Changes a parent of the campaign, or a seed where there is none yet.

    What reads the same as a known program on a fixed trace and costs no less is made anew, a few times at most.

    Parents are drawn from what people pinned half of the time, where they did; else from the frontier half of the
    time and otherwise from all accepted programs, so that a structure which lost with its first numbers can still have
    children.
    """

    name = "grammar"
    operators = (*OPERATORS, CROSS, FRESH, SIMPLIFY)

    def __init__(self, library: Mapping[str, str] | None = None):
        self._library = dict(library if library is not None else seeds())
        self._known = {structure_hash(parsed(text)) for text in self._library.values()}

    def propose(
        self, history: Sequence[Member], rng: random.Random, slot: int, operator: str | None = None
    ) -> Proposal | None:
        """None when the operators found nothing new; otherwise a valid program of a structure not in `history`."""
        known = self._known | {member.structure for member in history}
        texts = {*self._library.values(), *(member.source for member in history if member.status == "accepted")}
        for _ in range(_NOVEL_ATTEMPTS):
            made = self._made(history, rng, known, operator)
            if made is None or is_worth_a_slot(made.source, texts):
                break
        return made

    def _made(
        self, history: Sequence[Member], rng: random.Random, known: set[str], operator: str | None
    ) -> Proposal | None:
        if operator == FRESH:
            made = self._fresh(rng, known)
            return self._proposal(made, (), {}) if made else None
        first, second = self._parent(history, rng), self._parent(history, rng)
        if operator == CROSS:
            made = cross(first[1], second[1], rng, known)
            parents = tuple(p for p in (first[0], second[0]) if p)
        else:
            made = _simplified(first[1], rng, known) if operator == SIMPLIFY else None
            made = mutate(first[1], rng, known, (operator,)) if operator in OPERATORS else made
            parents = (first[0],) if first[0] else ()
        if made is None:
            made = mutate(first[1], rng, known, depth=rng.choice((1, 2)))
            parents = (first[0],) if first[0] else ()
        return self._proposal(made, parents, first[2]) if made else None

    def _parent(self, history: Sequence[Member], rng: random.Random) -> tuple[str, str, Mapping[str, object]]:
        """(trial id or empty, source, knobs) of a program to change."""
        accepted = [member for member in history if member.status == "accepted"]
        frontier = [member for member in accepted if member.on_frontier]
        pinned = [member for member in accepted if member.pinned]
        if pinned and rng.random() < 0.5:
            pool = pinned
        else:
            pool = frontier if frontier and rng.random() < 0.5 else accepted
        if not pool:
            name = rng.choice(sorted(self._library))
            return "", self._library[name], {}
        member = rng.choice(list(pool))
        return member.id, member.source, member.knobs

    def _fresh(self, rng: random.Random, known: set[str]) -> Offspring | None:
        from vortexlab.dsl.testing import random_program

        for _ in range(_RANDOM_ATTEMPTS):
            text = random_program(rng)
            try:
                program = parsed(text)
                program.bind()
            except VortexError:
                continue
            if structure_hash(program) not in known:
                return Offspring(text, FRESH, "A random typed program.")
        return None

    def _proposal(self, made: Offspring, parents: tuple[str, ...], knobs: Mapping[str, object]) -> Proposal:
        program = parsed(made.source)
        kept = {}
        for name, value in knobs.items():
            if name in program.knobs:
                try:
                    kept[name] = program.knobs[name].check(value)  # type: ignore[arg-type]
                except VortexError:
                    continue
        return Proposal(
            source=made.source, name=program.name, proposer=self.name, operator=made.operator, parents=parents,
            hypothesis=made.note, knobs=kept,
        )  # fmt: skip


def _simplified(source: str, rng: random.Random, known: set[str]) -> Offspring | None:
    found = simpler(source, known, rng)
    if found is None:
        return None
    return Offspring(found.source, SIMPLIFY, f"{parsed(source).name} {found.change}, which it reads the same without.")
