"""An operator that moves work between page time, when summaries are written, and query time, when pages are scored."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from dataclasses import replace

from vortexlab.search_spaces.genome import Genome, is_attribute, mentions, sites, swapped
from vortexlab.search_spaces.layout import clone
from vortexlab.search_spaces.sites import is_call, is_reduction

_Made = Iterator[Genome]


def change_time(genome: Genome, rng: random.Random) -> Genome | None:
    """Keys are reduced over the tokens of a page after the product with the query instead of before it, or the other
    way round; or what of a score needs no query is written with the page."""
    found = [*_later(genome), *_sooner(genome), *_ahead(genome)]
    return rng.choice(found) if found else None


def _later(genome: Genome) -> _Made:
    """Exact and dear: the summary keeps what it would have reduced, for every token."""
    for key, product, name in _products(genome):
        reduced = genome.fields.get(name)
        if reduced is None or not _over_tokens(reduced):
            continue
        assert isinstance(reduced, ast.Call) and isinstance(reduced.func, ast.Attribute)
        made, fresh = _with_field(genome, name, reduced.func.value)
        method = ast.Attribute(_reading(product, name, fresh), reduced.func.attr, ast.Load())
        yield made.with_part("scores", key, swapped(genome.scores[key], product, ast.Call(method, reduced.args, [])))


def _sooner(genome: Genome) -> _Made:
    """Cheap and coarse: one key stands for the tokens of its page."""
    for key, product, name in _products(genome):
        for outer in sites(genome.scores[key], ast.Call):
            if not _over_tokens(outer) or outer.func.value is not product or name not in genome.fields:  # type: ignore[attr-defined]
                continue
            assert isinstance(outer, ast.Call) and isinstance(outer.func, ast.Attribute)
            whole = ast.Call(ast.Attribute(genome.fields[name], outer.func.attr, ast.Load()), outer.args, [])
            made, fresh = _with_field(genome, name, whole)
            yield made.with_part("scores", key, swapped(genome.scores[key], outer, _reading(product, name, fresh)))


def _ahead(genome: Genome) -> _Made:
    """The same score: a part of it that no query changes is a summary of its own."""
    for key, tree in genome.scores.items():
        for node in sites(tree, (ast.Call, ast.BinOp)):
            if not mentions(node, "s") or any(mentions(node, word) for word in ("q", "m", "ctx", "page")):  # type: ignore[arg-type]
                continue
            made, fresh = _with_field(genome, "part", _written_out(node, genome))  # type: ignore[arg-type]
            read = ast.Attribute(ast.Name("s", ast.Load()), fresh, ast.Load())
            yield made.with_part("scores", key, swapped(tree, node, read))


def _products(genome: Genome) -> Iterator[tuple[str, ast.Call, str]]:
    """(score, product with a summary, name of the summary)."""
    for key, tree in genome.scores.items():
        for node in sites(tree, ast.Call):
            if is_call(node, "dot"):
                assert isinstance(node, ast.Call)
                yield from ((key, node, arg.attr) for arg in node.args[:2] if is_attribute(arg, "s"))


def _over_tokens(node: ast.AST) -> bool:
    """A reduction over the tokens of a page, the norm aside, which is none of products."""
    if not is_reduction(node):
        return False
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    return node.func.attr != "norm" and [ast.unparse(arg) for arg in node.args] == ["token"]


def _with_field(genome: Genome, name: str, tree: ast.expr) -> tuple[Genome, str]:
    """A further summary, under a name like `name`; one that is not read any more is left out when it is rendered."""
    fresh = next(word for word in (name, *(f"{name}{i}" for i in range(2, 99))) if word not in genome.fields)
    return replace(genome, fields={**genome.fields, fresh: tree}), fresh


def _reading(product: ast.Call, name: str, fresh: str) -> ast.Call:
    """The product with another summary in the place of `name`."""
    made = clone(product)
    for arg in made.args[:2]:
        if is_attribute(arg, "s") and arg.attr == name:
            arg.attr = fresh
    return made


def _written_out(node: ast.expr, genome: Genome) -> ast.expr:
    """An expression over summaries as one over what these are made of."""

    class Inlined(ast.NodeTransformer):
        def visit_Attribute(self, inner: ast.Attribute) -> ast.AST:  # the name is ast's
            if is_attribute(inner, "s") and inner.attr in genome.fields:
                return clone(genome.fields[inner.attr])
            return self.generic_visit(inner)

    made: ast.expr = Inlined().visit(clone(node))
    return made
