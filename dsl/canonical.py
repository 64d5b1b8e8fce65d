"""Hashes that see what a program means and not how it is written, and how far apart two programs are."""

from __future__ import annotations

from collections import Counter
from typing import Any

from vortexlab.dsl.ir import Program, digest
from vortexlab.dsl.normal import Mark, NormalForm, normal_form

_DEPTH = 3
_Vertex = tuple[str, str]


def canonical_hash(program: Program) -> str:
    """64 hexadecimal digits, equal for programs that differ in names, order, dead code or spelling only.

    Works on bound and unbound programs. Two unbound programs are equal when their knobs have the same ranges and
    defaults in the same roles, whatever the knobs are called.
    """
    form = normal_form(program)
    rank = _ranks(form)
    hashes: list[str] = []
    for term in form.terms:
        below = [hashes[i] for i in term.inputs]
        marks = [[role, _spec(form, kind, name), rank[kind, name]] for role, kind, name in term.marks]
        hashes.append(digest([list(term.label), below if term.is_ordered else sorted(below), marks]))

    def size(value: str | Mark | None) -> object:
        return value if not isinstance(value, tuple) else [_spec(form, *value[1:]), rank[value[1], value[2]]]

    return digest(
        {
            "version": 2,
            "page": size(form.page),
            "block": size(form.block),
            "output": hashes[form.output],
            "seed": program.seed if form.has_random else None,
            "summaries": program.summary_dtype if form.has_summaries else None,
            "kv": program.kv_dtype,
            "parameters": program.parameters.digest if form.has_params and program.parameters else None,
        }
    )


def structure_hash(program: Program) -> str:
    """64 hexadecimal digits, equal for programs that differ in numbers and knobs only.

    Taken of the unbound program: once a choice knob (the way heads are reduced) is bound, its value is structure.
    """
    form = normal_form(program, blank=True)
    rank = _ranks(form)
    hashes: list[str] = []
    for term in form.terms:
        below = [hashes[i] for i in term.inputs]
        marks = [[role, rank[kind, name]] for role, kind, name in term.marks]
        hashes.append(digest([list(term.label), below if term.is_ordered else sorted(below), marks]))
    return digest(
        {
            "version": 2,
            "output": hashes[form.output],
            "summaries": program.summary_dtype if form.has_summaries else None,
            "kv": program.kv_dtype,
        }
    )


def distance(a: Program, b: Program) -> float:
    """How differently two programs are built, in [0, 1]; 0 for programs that differ in numbers and names only.

    One minus the Jaccard similarity of the multisets of their subtrees of depth one to three, numbers blanked.
    """
    return apart(subtrees(a), subtrees(b))


def apart(left: Counter[str], right: Counter[str]) -> float:
    """`distance` of two programs from their `subtrees`."""
    return 1.0 - (left & right).total() / (left | right).total()


def subtrees(program: Program) -> Counter[str]:
    """How often each subtree of depth one to three occurs in a program, by its hash, numbers blanked."""
    form = normal_form(program, blank=True)
    labels = [digest([list(t.label), [role for role, _, _ in t.marks]]) for t in form.terms]
    found = Counter(labels)
    level = labels
    for _ in range(_DEPTH - 1):
        deeper = []
        for index, term in enumerate(form.terms):
            below = [level[i] for i in term.inputs]
            deeper.append(digest([labels[index], below if term.is_ordered else sorted(below)]))
        found.update(h for h, term in zip(deeper, form.terms, strict=True) if term.inputs)
        level = deeper
    return found


def _spec(form: NormalForm, kind: str, name: str) -> list[object]:
    """What a knob is, its name left out."""
    if kind != "knob":
        return [kind]
    knob = form.knobs[name]
    return [knob.kind, knob.default, knob.low, knob.high, knob.log, knob.step, list(knob.choices)]


def _ranks(form: NormalForm) -> dict[_Vertex, int]:
    """A number for every knob, axis and memory that does not depend on names or order.

    Colour refinement on the graph of terms, knobs, axes and memories: a vertex is told from another by what it is, what
    it reads and what reads it. Vertices that stay alike are interchangeable, so that any of them may come first.
    """
    names = sorted(
        {(kind, name) for t in form.terms for _, kind, name in t.marks}
        | {(kind, name) for _, kind, name in form.sizes}
    )
    if not names:
        return {}
    colours = _refined(form, names, {name: digest(_spec(form, *name)) for name in names})
    while True:
        classes: dict[int, list[_Vertex]] = {}
        for name in names:
            classes.setdefault(colours[name], []).append(name)
        shared = [colour for colour in sorted(classes) if len(classes[colour]) > 1]
        if not shared:
            break
        marked = {name: f"{colours[name]:08d}" for name in names}
        marked[classes[shared[0]][0]] += "!"
        colours = _refined(form, names, marked)
    order = {colour: position for position, colour in enumerate(sorted(colours[name] for name in names))}
    return {name: order[colours[name]] for name in names}


def _refined(form: NormalForm, names: list[_Vertex], initial: dict[_Vertex, str]) -> dict[_Vertex, int]:
    """Stable colours of `names`, as small integers that depend on the shape of the graph alone."""
    terms = form.terms
    users: list[list[tuple[int, int]]] = [[] for _ in terms]
    holders: dict[_Vertex, list[tuple[str, int]]] = {name: [] for name in names}
    for index, term in enumerate(terms):
        for position, source in enumerate(term.inputs):
            users[source].append((position if term.is_ordered else -1, index))
        for role, kind, name in term.marks:
            holders[kind, name].append((role, index))
    sizes = {(kind, name): role for role, kind, name in form.sizes}
    if len(sizes) < len(form.sizes):
        sizes = dict.fromkeys(sizes, "page and block")
    term_colour = _compact([(term.label, index == form.output) for index, term in enumerate(terms)])
    name_colour = dict(zip(names, _compact([(initial[n], sizes.get(n, "")) for n in names]), strict=True))
    count = 0
    while True:
        signatures = []
        for index, term in enumerate(terms):
            below = [term_colour[i] for i in term.inputs]
            signatures.append(
                (
                    term_colour[index],
                    tuple(below if term.is_ordered else sorted(below)),
                    tuple((role, name_colour[kind, name]) for role, kind, name in term.marks),
                    tuple(sorted((position, term_colour[user]) for position, user in users[index])),
                )
            )
        name_signatures = [
            (name_colour[n], tuple(sorted((role, term_colour[holder]) for role, holder in holders[n]))) for n in names
        ]
        term_colour = _compact(signatures)
        name_colour = dict(zip(names, _compact(name_signatures), strict=True))
        seen = len(set(term_colour)) + len(set(name_colour.values()))
        if seen == count:
            return name_colour
        count = seen


def _compact(signatures: list[Any]) -> list[int]:
    """Each signature's place among the different ones, in their own order."""
    place = {signature: position for position, signature in enumerate(sorted(set(signatures)))}
    return [place[signature] for signature in signatures]
