"""Numbers written out become knobs: what an author fixed, a search can tune.

A number where a shared knob has its meaning, such as the 64 of ``topk(score, 64)``, becomes that knob; a number that a
score multiplies or adds becomes one of the program's own. With its default values the opened program is the same.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

from vortexlab.dsl import canonical_hash
from vortexlab.dsl.errors import VortexError
from vortexlab.search_spaces.genome import Genome, expression, sites, swapped_all
from vortexlab.search_spaces.knobs import SHARED, SharedKnob
from vortexlab.search_spaces.parsed import parsed

#: The shared knob that an argument of a call is: by position, or by keyword.
_POSITIONS = {
    ("first", 0): "sink", ("last", 0): "recent", ("random", 0): "random_pages", ("stride", 0): "stride_pages",
    ("topk", 1): "budget", ("topp", 1): "mass",
}  # fmt: skip
_KEYWORDS = {
    ("topp", "max"): "budget", ("above", "max"): "budget", ("reuse", "every"): "every", ("split", "part"): "sub",
}  # fmt: skip
_SPAN = 8.0  # a knob of the program's own reaches from an eighth of the number to eight times it


@lru_cache(maxsize=1024)
def opened(source: str) -> str:
    """The program with its numbers as knobs; the text itself where none can be opened."""
    try:
        before = canonical_hash(parsed(source).bind())
        genome = held = Genome.of(source)
        for place, key, tree in list(genome.parts()):
            news: dict[int, ast.expr] = {}
            for node, name in _shared_numbers(tree):
                declared = _declared(SHARED[name], node.value)
                if declared is not None and ast.dump(genome.names.get(name, declared)) == ast.dump(declared):
                    genome = replace(genome, names={**genome.names, name: declared})
                    news[id(node)] = ast.Name(name, ast.Load())
            for node in _own_numbers(tree) if place == "scores" else ():
                name = next(word for word in (f"number{i}" for i in range(1, 1000)) if word not in genome.names)
                genome = replace(genome, names={**genome.names, name: _own(float(node.value))})  # type: ignore[arg-type]
                news[id(node)] = ast.Name(name, ast.Load())
            if news:
                genome = genome.with_part(place, key, swapped_all(tree, news))
        if genome is held:
            return source
        text = genome.render(genome.doc, genome.name)
        if canonical_hash(parsed(text).bind()) != before:
            return source
    except VortexError:
        return source
    return text


def _shared_numbers(tree: ast.expr) -> Iterator[tuple[ast.Constant, str]]:
    for call in sites(tree, ast.Call):
        assert isinstance(call, ast.Call)
        name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
        for at, argument in enumerate(call.args):
            if isinstance(argument, ast.Constant) and (name, at) in _POSITIONS:
                yield argument, _POSITIONS[name, at]
        for word in call.keywords:
            if isinstance(word.value, ast.Constant) and (name, word.arg or "") in _KEYWORDS:
                yield word.value, _KEYWORDS[name, word.arg or ""]


def _own_numbers(tree: ast.expr) -> Iterator[ast.Constant]:
    """Positive numbers with a fraction or a point that a score is multiplied with or added to."""
    for node in sites(tree, ast.BinOp):
        assert isinstance(node, ast.BinOp)
        for side in (node.left, node.right):
            if isinstance(side, ast.Constant) and isinstance(side.value, float) and side.value > 0:
                yield side


def _declared(knob: SharedKnob, value: Any) -> ast.expr | None:
    """The shared knob with the value as its default; None where it does not take the value."""
    call = expression(knob.declaration)
    assert isinstance(call, ast.Call)
    if knob.choices:
        fits = value in knob.choices
    else:
        low, high = (ast.literal_eval(argument) for argument in call.args)
        fits = isinstance(value, int if knob.kind == "int" else (int, float)) and low <= value <= high
    if not fits or isinstance(value, bool):
        return None
    for word in call.keywords:
        if word.arg == "default":
            word.value = ast.Constant(value)
    return call


def _own(value: float) -> ast.expr:
    return expression(f"knob.float({value / _SPAN!r}, {value * _SPAN!r}, log=True, default={value!r})")
