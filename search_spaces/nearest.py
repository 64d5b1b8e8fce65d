"""The nearest published program to any program, and the difference in words.

Nearest is by `dsl.distance`, which blanks numbers and names; equals go by the fewest differences, then by the order of
the library. Words compare what both programs are made of: selectors, conditions, terms of the scores, how
heads are joined, parts of a page, what is remembered or reused, prefill, output, precision, and then the numbers.
"""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vortexlab.dsl import structure_hash
from vortexlab.dsl.canonical import apart, subtrees
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import SET, Attr, Memory, Program
from vortexlab.search_spaces import library
from vortexlab.search_spaces.anatomy import (
    LONGEST,
    among,
    everywhere,
    factors,
    in_order,
    is_constant,
    is_method,
    reduced_axes,
    selectors,
    summands,
    written,
)
from vortexlab.search_spaces.catalogue import entry
from vortexlab.search_spaces.genome import Genome, is_attribute
from vortexlab.search_spaces.layout import clone
from vortexlab.search_spaces.parsed import parsed
from vortexlab.search_spaces.sites import is_call
from vortexlab.search_spaces.spelling import blank, bound, shortened

_JOINED = {
    "max": "by the best of them", "mean": "by their mean", "sum": "by their sum", "min": "by the worst of them",
    "norm": "by their norm",
}  # fmt: skip
_WRAPPERS = {"softmax": "a softmax over the pages", "share": "one list for all KV heads"}


@dataclass(frozen=True)
class Nearest:
    """`program` is its name in the library, `citation` where it was published; `distance` in 0..1.

    `differences` say how the two are built differently, nothing where `same` (the structure is the published one's);
    `numbers` say which numbers differ from the published defaults.
    """

    program: str
    citation: str
    distance: float
    same: bool
    differences: tuple[str, ...]
    numbers: tuple[str, ...]

    def __str__(self) -> str:
        named = f"{self.program} ({self.citation})" if self.citation else self.program
        said = "; ".join((*self.differences, *self.numbers))
        if self.same:
            return f"{named} with other numbers: {said}" if said else f"{named} itself"
        return f"as {named}, but {said or 'put together differently'}"

    def to_json(self) -> dict[str, Any]:
        return {
            "program": self.program,
            "citation": self.citation,
            "distance": self.distance,
            "same": self.same,
            "differences": list(self.differences),
            "numbers": list(self.numbers),
            "text": str(self),
        }


def nearest(source: str, knobs: Mapping[str, Attr] | None = None) -> Nearest:
    """The published program that is built most like this one. Raises `VortexError` when the text is no program."""
    program = parsed(source)
    own = subtrees(program)
    far = {name: apart(own, _subtrees(name)) for name in library.NAMES}
    least = min(far.values())
    found = [_compared(name, least, source, program, knobs or {}) for name in library.NAMES if far[name] == least]
    return min(found, key=lambda item: (not item.same, len(item.differences), len(item.numbers)))


@functools.cache
def _subtrees(name: str) -> Counter[str]:
    return subtrees(library.load(name))


@functools.cache
def citation(name: str) -> str:
    """Authors and number of a published program's first source: `Tang et al., arXiv 2406.10774`."""
    text = entry(name).source
    if text.startswith("`"):  # written after the code of Vortex
        who = "Vortex"
    else:
        authors = re.search(r"[\w-]+ et al\.", text)
        who = authors[0] if authors else re.split(r" \(|,", text)[0]
    where = re.search(r"arXiv \d{4}\.\d{5}|NeurIPS \d{4}", text)
    return f"{who}, {where[0]}" if where else who


def _compared(name: str, far: float, source: str, program: Program, knobs: Mapping[str, Attr]) -> Nearest:
    other = parsed(library.source(name))
    same = structure_hash(program) == structure_hash(other)
    try:
        own = _View.of(Genome.of(source), program, {**program.defaults, **knobs})
    except VortexError:  # too large to be taken apart
        return Nearest(name, citation(name), far, same, (), ())
    theirs = _published(name)
    built = () if same else tuple(_differences(own, theirs))
    return Nearest(name, citation(name), far, same, built, tuple(_numbers(own, theirs)))


@functools.cache
def _published(name: str) -> _View:
    text = library.source(name)
    program = parsed(text)
    return _View.of(Genome.of(text), program, program.defaults)


@dataclass(frozen=True)
class _View:
    """What a program is made of, as texts. Dictionaries are keyed by a text without names and numbers.

    `terms` have their summaries written out, without what `heads`, `parts` and `wrappers` say already. `told` are knobs
    that the texts of the selectors have the values of.
    """

    page: Attr
    knobs: Mapping[str, Attr]
    told: frozenset[str]
    selectors: dict[str, str]
    among: dict[str, str]
    shunned: frozenset[str]
    cases: dict[str, str]
    terms: dict[str, str]
    heads: tuple[tuple[str, bool], ...]
    parts: bool
    wrappers: frozenset[str]
    lists: str
    reuse: tuple[str, ...]
    memories: tuple[str, ...]
    prefill: bool
    output: str
    kv: str
    summaries: str

    @staticmethod
    def of(genome: Genome, program: Program, knobs: Mapping[str, Attr]) -> _View:
        names = set(program.knobs)
        chosen, around = {}, {}
        read = {blank(_bare(call), names) for call in selectors(_Reading().visit(clone(genome.select)))
                if isinstance(call, ast.Call)}  # fmt: skip
        told = {"page"}
        for call in selectors(genome.select):
            assert isinstance(call, ast.Call)
            key = blank(_bare(call), names)
            chosen[key] = written(bound(call, knobs))
            told |= {node.id for node in ast.walk(_bare(call)) if isinstance(node, ast.Name)}
            rest = among(call)
            around[key] = "" if rest is None else blank(rest, names)
        terms: dict[str, str] = {}
        heads: set[tuple[str, bool]] = set()
        wrappers: set[str] = set()
        live = genome.pruned()
        parts = {word.arg for tree in live.fields.values() for node in ast.walk(tree) if is_method(node, "split")
                 for word in node.keywords if word.arg}  # fmt: skip
        for tree in live.scores.values():
            calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
            wrappers |= {name for node in calls for name in _WRAPPERS if is_call(node, name)}
            heads |= {_how(node, knobs) for node in calls if "head" in reduced_axes(node)}
            for term in _terms(_stripped(tree, parts)):
                whole = _stripped(_with_summaries(term, live.fields), parts)
                short = len(ast.unparse(whole)) <= LONGEST
                terms[blank(whole, names)] = written(whole) if short else written(term, genome.locals)
        at = knobs["page"] if "page" in program.knobs else program.page
        return _View(
            page=at if isinstance(at, int) else None,
            knobs=knobs,
            told=frozenset(told),
            selectors=chosen,
            among=around,
            shunned=frozenset(chosen.keys() - read),
            cases={blank(node.args[0], names): written(bound(node.args[0], knobs))
                   for node in ast.walk(genome.select) if isinstance(node, ast.Call) and is_call(node, "where")
                   and "ctx.prefill" not in ast.unparse(node.args[0])},
            terms=terms,
            heads=tuple(sorted(heads)),
            parts=bool(parts),
            wrappers=frozenset(wrappers),
            lists="query head" if "head" in program.nodes[program.output].type.axes else "KV head",
            reuse=tuple(sorted({str(n.attrs["over"]) for n in map(program.nodes.__getitem__, program.live())
                                if n.op == "reuse"})),
            memories=tuple(sorted(_memory(program.memories[name]) for name in program.live_memories())),
            prefill=program.pooled is not None,
            output="" if live.attend is None else blank(_with_summaries(live.attend, live.fields), names),
            kv=program.kv_dtype,
            summaries=program.summary_dtype if live.fields else "kv",
        )  # fmt: skip


def _differences(own: _View, theirs: _View) -> Iterator[str]:
    yield from _of_selectors(own, theirs)
    for key in own.cases.keys() - theirs.cases.keys():
        yield f"another choice where {own.cases[key]}"
    for key in theirs.cases.keys() - own.cases.keys():
        yield f"no other choice where {theirs.cases[key]}"
    if own.lists != theirs.lists:
        how = f", which joins the heads {_heads(own)}," if own.heads and not theirs.heads else ""
        yield f"one list a {own.lists}{how} instead of one a {theirs.lists}"
    added = [text for key, text in own.terms.items() if key not in theirs.terms]
    lost = [text for key, text in theirs.terms.items() if key not in own.terms]
    if added and lost:
        yield f"scores by {_and(added)} instead of {_and(lost)}"
    elif added:
        yield f"adds {_and(added)} to the score"
    elif lost:
        yield f"leaves {_and(lost)} out of the score"
    if own.heads != theirs.heads and own.heads and theirs.heads:
        yield f"joins the heads {_heads(own)} instead of {_heads(theirs)}"
    if own.parts != theirs.parts:
        yield "remembers parts of a page" if own.parts else "remembers whole pages instead of parts"
    for name, words in _WRAPPERS.items():
        if (name in own.wrappers) != (name in theirs.wrappers):
            yield words if name in own.wrappers else f"without {words}"
    for over in ("steps", "layers"):
        if (over in own.reuse) != (over in theirs.reuse):
            yield f"reuses pages over {over}" if over in own.reuse else f"does not reuse pages over {over}"
    for text in own.memories:
        if text not in theirs.memories:
            yield f"carries {text} on"
    for text in theirs.memories:
        if text not in own.memories:
            yield f"does not carry {text} on"
    if own.prefill != theirs.prefill:
        yield "reads prompts sparsely" if own.prefill else "reads prompts densely"
    if own.output != theirs.output:
        if not own.output:
            yield "plain attention over the pages"
        else:
            yield "another attention output" if theirs.output else "an attention output of its own"
    if own.kv != theirs.kv:
        yield f"a KV cache in {_precision(own.kv)} instead of {_precision(theirs.kv)}"
    if own.summaries != theirs.summaries:
        yield f"summaries in {_precision(own.summaries)} instead of {_precision(theirs.summaries)}"


def _of_selectors(own: _View, theirs: _View) -> Iterator[str]:
    added = {key: text for key, text in own.selectors.items() if key not in theirs.selectors}
    lost = {key: text for key, text in theirs.selectors.items() if key not in own.selectors}
    for key, text in list(added.items()):  # the same word with other arguments
        rival = next((other for other in lost if other.split("(")[0] == key.split("(")[0]), None)
        if rival is not None:
            yield f"{text} instead of {lost.pop(rival)}"
            del added[key]
    if len(added) == len(lost) == 1:
        yield f"{_and(list(added.values()))} instead of {_and(list(lost.values()))}"
    else:
        if added:
            yield f"adds {_and(list(added.values()))}"
        if lost:
            yield f"without {_and(list(lost.values()))}"
    for key in sorted(own.shunned - theirs.shunned):
        yield f"never reads {own.selectors[key]} by itself"
    for key in own.selectors.keys() & theirs.selectors.keys():
        if not (added or lost) and own.among[key] != theirs.among[key]:
            yield f"{own.selectors[key]} chooses among {'other' if own.among[key] else 'all'} pages"


def _numbers(own: _View, theirs: _View) -> Iterator[str]:
    """Numbers of what both have: the page, arguments of selectors, other knobs of one name."""
    if own.page != theirs.page:
        yield f"pages of {own.page} token{'' if own.page == 1 else 's'} instead of {theirs.page}"
    for key, text in own.selectors.items():
        if key in theirs.selectors and text != theirs.selectors[key]:
            yield f"{text} instead of {theirs.selectors[key]}"
    for name, value in own.knobs.items():
        if name not in own.told and theirs.knobs.get(name, value) != value:
            yield f"{name} {shortened(value)} instead of {shortened(theirs.knobs[name])}"


def _heads(view: _View) -> str:
    return _and([_JOINED[how] + (" in the query" if early else "") for how, early in view.heads])


def _precision(name: str) -> str:
    return "the model's precision" if name in ("kv", "auto") else name


def _memory(item: Memory) -> str:
    return f"{'pages' if item.type.kind == SET else 'a value a page'} over {item.scope}s"


def _and(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else items[0]


# --- expressions -------------------------------------------------------------------------------------------------


def _bare(call: ast.Call) -> ast.Call:
    """A selector without its score and what it chooses among."""
    scored = bool(call.args) and ast.unparse(call.args[0]).startswith("score")
    keywords = [word for word in call.keywords if word.arg not in ("among", "salt")]
    return ast.Call(call.func, call.args[scored:], keywords)


class _Reading(ast.NodeTransformer):
    """A selection without its complements: what it may read."""

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:  # the name is ast's
        return ast.Constant(0) if isinstance(node.op, ast.Invert) else node


def _with_summaries(tree: ast.expr, fields: Mapping[str, ast.expr]) -> ast.expr:
    for node in list(ast.walk(tree)):
        if is_attribute(node, "s") and node.attr in fields:
            tree = everywhere(tree, node, fields[node.attr])
    return tree


def _how(node: ast.Call, knobs: Mapping[str, Attr]) -> tuple[str, bool]:
    """How a reduction over heads joins them, and whether it does so in the query, before the products."""
    assert isinstance(node.func, ast.Attribute)
    early = ast.unparse(node.func.value) == "q"
    if node.func.attr == "reduce":
        return str(ast.literal_eval(bound(node.args[0], knobs))), early
    return node.func.attr, early


def _stripped(tree: ast.expr, parts: set[str]) -> ast.expr:
    """Without joins of heads, parts of a page and wrappers, which are told by themselves."""
    for node in in_order(tree):
        axes = reduced_axes(node)
        if is_method(node, "split") or (is_method(node) and axes and axes <= {"head", *parts}):
            return _stripped(everywhere(tree, node, node.func.value), parts)
        if isinstance(node, ast.Call) and is_call(node, *_WRAPPERS):
            return _stripped(everywhere(tree, node, node.args[0]), parts)
    return tree


def _terms(tree: ast.expr) -> Iterator[ast.expr]:
    """Terms of a sum and factors of a product, constants aside."""
    for _, term in summands(tree):
        for factor in factors(term):
            if factor is not tree and len(summands(factor)) > 1:
                yield from _terms(factor)
            elif not is_constant(factor):
                yield factor

