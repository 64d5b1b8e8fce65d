"""Typed mutation and crossover: how new structures are made without a language model.

An operator takes a genome apart, changes one thing, and gives a genome back, or None where it does not apply. Whether
the result is a valid program is the compiler's business: `mutate` and `cross` try until one passes `parse`.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vortexlab.dsl import parse, structure_hash
from vortexlab.dsl.errors import ProgramError, VortexError
from vortexlab.search_spaces.genome import Genome, expression, fill, is_attribute, sites, swapped

Operator = Callable[[Genome, random.Random], Genome | None]
_REDUCERS = ("max", "mean", "sum", "min", "norm")
_ATTEMPTS = 24

#: Summaries and the score terms they allow; every term is [head, page] or broadcasts to it.
_TERMS = [
    ({"c": "k.mean(token)"}, "dot(q, s.c, channel)"),
    ({"lo": "k.min(token)", "hi": "k.max(token)"}, "maximum(q * s.lo, q * s.hi).sum(channel)"),
    ({"e": "v.norm(channel).mean(token)"}, "s.e"),
    ({"n": "k.norm(channel).max(token)"}, "q.norm(channel) * s.n"),
    ({"hi": "k.max(token)"}, "dot(relu(q), s.hi, channel)"),
    ({"d": "k.max(token) - k.min(token)"}, "dot(abs(q), s.d, channel)"),
    ({"h": "k.split(token, sub=2).mean(token)"}, "dot(q, s.h, channel).max(sub)"),
]


@dataclass(frozen=True)
class _Site:
    """A subtree of one part of a genome. `node` is whatever the matcher asked for."""

    place: str
    key: str
    tree: ast.expr
    node: Any

    def replaced(self, genome: Genome, new: ast.expr) -> Genome:
        return genome.with_part(self.place, self.key, swapped(self.tree, self.node, new))


def _choose_site(genome: Genome, rng: random.Random, match: Callable[[Any], bool]) -> _Site | None:
    found = [
        _Site(place, key, tree, node)
        for place, key, tree in genome.parts()
        for node in sites(tree, ast.AST)
        if match(node)
    ]
    return rng.choice(found) if found else None


def _is_call(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def _is_reduction(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _REDUCERS


def _main_score(genome: Genome) -> str | None:
    return next(iter(genome.scores), None)


def swap_reducer(genome: Genome, rng: random.Random) -> Genome | None:
    """Another way to reduce an axis: max for mean, mean for sum."""
    site = _choose_site(genome, rng, _is_reduction)
    if site is None:
        return None
    call: ast.Call = site.node
    assert isinstance(call.func, ast.Attribute)
    how = rng.choice([name for name in _REDUCERS if name != call.func.attr])
    return site.replaced(genome, ast.Call(ast.Attribute(call.func.value, how, ast.Load()), call.args, call.keywords))


def add_term(genome: Genome, rng: random.Random) -> Genome | None:
    """A further summary and a term of the score made from it, added with a weight or multiplied in."""
    key = _main_score(genome)
    if key is None:
        return None
    summaries, term = rng.choice(_TERMS)
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
    held = genome.scores[key]
    inner, outer = _split_head_reduction(held)
    template = rng.choice(["a + weight * b", "a * b", "maximum(a, b)"])
    joined = outer(fill(template, a=inner, b=made))
    genome = replace(genome, fields=fields).with_part("scores", key, joined)
    return genome.with_knob("weight") if "weight" in template else genome


def _split_head_reduction(tree: ast.expr) -> tuple[ast.expr, Callable[[ast.expr], ast.expr]]:
    """The expression below an outermost `.max(head)` and the function that puts the reduction back."""
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Attribute) and any(
        isinstance(arg, ast.Name) and arg.id == "head" for arg in tree.args
    ):
        call, func = tree, tree.func
        return func.value, lambda inner: ast.Call(
            ast.Attribute(inner, func.attr, ast.Load()), call.args, call.keywords
        )
    return tree, lambda inner: inner


def drop_part(genome: Genome, rng: random.Random) -> Genome | None:
    """One side of a sum, product or set operation alone."""
    site = _choose_site(genome, rng, lambda node: isinstance(node, ast.BinOp))
    if site is None:
        return None
    node: ast.BinOp = site.node
    return site.replaced(genome, rng.choice([node.left, node.right]))


def subdivide(genome: Genome, rng: random.Random) -> Genome | None:
    """Summaries of sub-pages instead of whole pages; the best sub-page speaks for its page (LServe)."""
    key = _main_score(genome)
    if key is None or any("sub" in ast.dump(tree) for tree in genome.fields.values()):
        return None
    parts = rng.choice([2, 4])
    fields = {}
    for name, tree in genome.fields.items():
        for node in sites(tree, ast.Name):
            if isinstance(node, ast.Name) and node.id in ("k", "v"):
                tree = swapped(tree, node, expression(f"{node.id}.split(token, sub={parts})"))
                break
        fields[name] = tree
    inner, outer = _split_head_reduction(genome.scores[key])
    return replace(genome, fields=fields).with_part("scores", key, outer(fill("x.max(sub)", x=inner)))


def add_selector(genome: Genome, rng: random.Random) -> Genome | None:
    """Unites the selection with a static pattern."""
    text, knob = rng.choice([
        ("a | random(random_pages)", "random_pages"), ("a | stride(stride_pages)", "stride_pages"),
        ("a | first(sink)", "sink"), ("a | last(recent)", "recent"),
    ])  # fmt: skip
    return genome.with_part("select", "", fill(text, a=genome.select)).with_knob(knob)


def spare_forced(genome: Genome, rng: random.Random) -> Genome | None:
    """Lets a scored selector choose only among pages that no static pattern forces anyway."""
    statics = [node for node in sites(genome.select, ast.Call) if _is_call(node, "first", "last")]
    site = _choose_site(genome, rng, lambda node: _is_call(node, "topk", "topp", "above")
                        and not any(k.arg == "among" for k in node.keywords))  # fmt: skip
    if site is None or not statics:
        return None
    forced: ast.expr = statics[0]  # type: ignore[assignment]
    for other in statics[1:]:
        forced = ast.BinOp(forced, ast.BitOr(), other)  # type: ignore[arg-type]
    call: ast.Call = site.node
    among = ast.keyword("among", ast.UnaryOp(ast.Invert(), forced))
    return site.replaced(genome, ast.Call(call.func, call.args, [*call.keywords, among]))


_BUDGETS = {
    "budget": ("budget",),
    "maximum(4, floor(fraction * ctx.pages))": ("fraction",),
    "maximum(4, floor(weight * 4.0 * sqrt(ctx.pages)))": ("weight",),
    "where(ctx.layer < dense_layers, ctx.pages, budget)": ("dense_layers", "budget"),
    "maximum(4, budget // (1 + ctx.layer))": ("budget",),
}


def change_budget(genome: Genome, rng: random.Random) -> Genome | None:
    """Another law for how many pages a top-k reads: fixed, a share, a root, or by layer."""
    site = _choose_site(genome, rng, lambda node: _is_call(node, "topk") and len(node.args) == 2)
    if site is None:
        return None
    call: ast.Call = site.node
    law = rng.choice([text for text in _BUDGETS if text != ast.unparse(call.args[1])])
    genome = site.replaced(genome, ast.Call(call.func, [call.args[0], expression(law)], call.keywords))
    for knob in _BUDGETS[law]:
        genome = genome.with_knob(knob)
    return genome


def change_selector(genome: Genome, rng: random.Random) -> Genome | None:
    """A top-k becomes a top-p with a bound, or a threshold at the mean score; and back."""
    site = _choose_site(genome, rng, lambda node: _is_call(node, "topk", "topp", "above"))
    if site is None:
        return None
    call: ast.Call = site.node
    score, keep = call.args[0], [k for k in call.keywords if k.arg == "among"]
    text = rng.choice([
        "topk(x, budget)", "topp(x, mass, scale=ctx.scale, max=budget)", "above(x, x.mean(page), max=budget)",
    ])  # fmt: skip
    made = fill(text, x=score)
    if ast.unparse(made).split("(")[0] == ast.unparse(call.func):
        return None
    assert isinstance(made, ast.Call)
    made.keywords += keep
    return site.replaced(genome, made).with_knob("budget").with_knob("mass")


def normalise_heads(genome: Genome, rng: random.Random) -> Genome | None:
    """Softmax over pages before the heads are joined, so that no head outshouts the others (NSA)."""
    key = _main_score(genome)
    if key is None or "softmax" in ast.dump(genome.scores[key]):
        return None
    inner, outer = _split_head_reduction(genome.scores[key])
    return genome.with_part("scores", key, outer(fill("softmax(ctx.scale * x, page)", x=inner)))


def share_heads(genome: Genome, rng: random.Random) -> Genome | None:
    """One list for all KV heads, or back to one each."""
    key = _main_score(genome)
    if key is None:
        return None
    tree = genome.scores[key]
    if _is_call(tree, "share"):
        assert isinstance(tree, ast.Call)
        return genome.with_part("scores", key, tree.args[0])
    return genome.with_part("scores", key, fill(f'share(x, "{rng.choice(["max", "sum", "mean"])}")', x=tree))


def lists_per_head(genome: Genome, rng: random.Random) -> Genome | None:
    """Every query head chooses its own pages."""
    key = _main_score(genome)
    if key is None:
        return None
    inner, _ = _split_head_reduction(genome.scores[key])
    return None if inner is genome.scores[key] else genome.with_part("scores", key, inner)


def by_layer(genome: Genome, rng: random.Random) -> Genome | None:
    """Dense or window-only in the first layers, the selection elsewhere."""
    other = rng.choice(["everything()", "first(sink) | last(recent)"])
    made = fill(f"where(ctx.layer < dense_layers, {other}, a)", a=genome.select)
    genome = genome.with_part("select", "", made).with_knob("dense_layers")
    return genome.with_knob("sink").with_knob("recent")


OPERATORS: dict[str, Operator] = {
    function.__name__: function
    for function in (
        swap_reducer, add_term, drop_part, subdivide, add_selector, spare_forced, change_budget, change_selector,
        normalise_heads, share_heads, lists_per_head, by_layer,
    )
}  # fmt: skip


def unite(first: Genome, second: Genome, rng: random.Random) -> Genome | None:
    """Crossover: both scores, joined into one, or both selections united."""
    a, b = _main_score(first), _main_score(second)
    if a is None or b is None:
        return None
    renames = {name: next(f"{name}{i}" for i in ("", *range(2, 99)) if f"{name}{i}" not in first.fields)
               for name in second.fields}  # fmt: skip

    def renamed(tree: ast.expr) -> ast.expr:
        tree = fill("x", x=tree)
        for node in ast.walk(tree):
            if is_attribute(node, "s"):
                node.attr = renames[node.attr]
        return tree

    fields = {**first.fields, **{renames[key]: tree for key, tree in second.fields.items()}}
    names = {**second.names, **first.names}
    left, right = first.scores[a], renamed(second.scores[b])
    joined = fill(rng.choice(["l + weight * r", "maximum(l, r)", "l * sigmoid(r)"]), l=left, r=right)
    made = replace(first, fields=fields, names=names).with_part("scores", a, joined)
    return made.with_knob("weight")


@dataclass(frozen=True)
class Offspring:
    """A valid new program: its text, and how it was made."""

    source: str
    operator: str
    note: str


def _valid(genome: Genome | None, doc: str, known: set[str]) -> str | None:
    if genome is None:
        return None
    text = genome.render(doc)
    try:
        program = parse(text)
        program.bind()
    except (ProgramError, VortexError):
        return None
    return None if structure_hash(program) in known else text


def mutate(
    source: str, rng: random.Random, known: set[str], operators: Sequence[str] = tuple(OPERATORS), *, depth: int = 1
) -> Offspring | None:
    """A valid mutation of the program whose structure is not in `known`; None when `operators` yield none.

    `depth` operators are applied one after the other.
    """
    parent = Genome.of(source)
    for _ in range(_ATTEMPTS):
        names = [rng.choice(list(operators)) for _ in range(depth)]
        genome: Genome | None = parent
        for name in names:
            genome = OPERATORS[name](genome, rng) if genome else None
        note = "; ".join(" ".join((OPERATORS[name].__doc__ or name).split()) for name in names)
        text = _valid(genome, f"{parent.name}, changed. {note}", known)
        if text:
            return Offspring(text, "+".join(names), note)
    return None


def cross(first: str, second: str, rng: random.Random, known: set[str]) -> Offspring | None:
    """A valid crossover of two programs whose structure is not in `known`, or None."""
    a, b = Genome.of(first), Genome.of(second)
    for _ in range(_ATTEMPTS):
        text = _valid(unite(a, b, rng), f"{a.name} joined with {b.name}.", known)
        if text:
            return Offspring(text, "cross", f"{a.name} joined with {b.name}")
    return None
