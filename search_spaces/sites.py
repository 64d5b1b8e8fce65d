"""Where an operator can act on a genome, and the terms that scores are made of."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from vortexlab.search_spaces.genome import Genome, expression, is_attribute, sites, swapped

REDUCERS = ("max", "mean", "sum", "min", "norm")

#: Summaries and the score terms they allow; every term is [head, page] or broadcasts to it.
TERMS = [
    ({"c": "k.mean(token)"}, "dot(q, s.c, channel)"),
    ({"c": "k.mean(token)"}, "dot(q.mean(head), s.c, channel)"),
    ({"lo": "k.min(token)", "hi": "k.max(token)"}, "maximum(q * s.lo, q * s.hi).sum(channel)"),
    ({"e": "v.norm(channel).mean(token)"}, "s.e"),
    ({"n": "k.norm(channel).max(token)"}, "q.norm(channel) * s.n"),
    ({"hi": "k.max(token)"}, "dot(relu(q), s.hi, channel)"),
    ({"d": "k.max(token) - k.min(token)"}, "dot(abs(q), s.d, channel)"),
    ({"h": "k.split(token, sub=2).mean(token)"}, "dot(q, s.h, channel).max(sub)"),
]


@dataclass(frozen=True)
class Site:
    """A subtree of one part of a genome. `node` is whatever the matcher asked for."""

    place: str
    key: str
    tree: ast.expr
    node: Any

    def replaced(self, genome: Genome, new: ast.expr) -> Genome:
        return genome.with_part(self.place, self.key, swapped(self.tree, self.node, new))


def choose_site(genome: Genome, rng: random.Random, match: Callable[[Any], bool]) -> Site | None:
    found = [
        Site(place, key, tree, node)
        for place, key, tree in genome.parts()
        for node in sites(tree, ast.AST)
        if match(node)
    ]
    return rng.choice(found) if found else None


def is_call(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def is_reduction(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in REDUCERS


def main_score(genome: Genome) -> str | None:
    return next(iter(genome.scores), None)


def split_head_reduction(tree: ast.expr) -> tuple[ast.expr, Callable[[ast.expr], ast.expr]]:
    """The expression below an outermost `.max(head)` and the function that puts the reduction back."""
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Attribute) and any(
        isinstance(arg, ast.Name) and arg.id == "head" for arg in tree.args
    ):
        call, func = tree, tree.func
        return func.value, lambda inner: ast.Call(
            ast.Attribute(inner, func.attr, ast.Load()), call.args, call.keywords
        )
    return tree, lambda inner: inner


def with_term(genome: Genome, rng: random.Random) -> tuple[Genome, ast.expr]:
    """The genome with the summaries of a random term, and the term over them."""
    summaries, term = rng.choice(TERMS)
    fields, names = dict(genome.fields), {}
    for name, text in summaries.items():
        tree = expression(text)
        same = next((k for k, v in fields.items() if ast.dump(v) == ast.dump(tree)), None)
        fresh = same or next(f"{name}{i}" for i in ("", *range(1, 99)) if f"{name}{i}" not in fields)
        fields[fresh] = tree
        names[name] = fresh
    made = expression(term)
    for node in ast.walk(made):
        if is_attribute(node, "s"):
            node.attr = names[node.attr]
    return replace(genome, fields=fields), made
