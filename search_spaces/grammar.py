"""Typed mutation and crossover: how new structures are made without a language model.

An operator takes a genome apart, changes one thing, and gives a genome back, or None where it does not apply. Whether
the result is a valid program is the compiler's business: `mutate` and `cross` try until one passes `parse`, and count
what they discard. What no operator changes (parameters, `pool`, `attend`) goes through as it is.
"""

from __future__ import annotations

import ast
import copy
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vortexlab.dsl import structure_hash
from vortexlab.dsl.errors import VortexError
from vortexlab.search_spaces.genome import Genome, expression, fill, is_declaration, sites, swapped
from vortexlab.search_spaces.joining import grafted, joined
from vortexlab.search_spaces.knobs import SHARED
from vortexlab.search_spaces.moves import MOVES
from vortexlab.search_spaces.parsed import parsed
from vortexlab.search_spaces.sites import (
    REDUCERS,
    choose_site,
    is_call,
    is_reduction,
    main_score,
    split_head_reduction,
    with_term,
)
from vortexlab.search_spaces.times import change_time

Operator = Callable[[Genome, random.Random], Genome | None]
_ATTEMPTS = 24

def swap_reducer(genome: Genome, rng: random.Random) -> Genome | None:
    """Another way to reduce an axis: max for mean, mean for sum."""
    site = choose_site(genome, rng, is_reduction)
    if site is None:
        return None
    call: ast.Call = site.node
    assert isinstance(call.func, ast.Attribute)
    how = rng.choice([name for name in REDUCERS if name != call.func.attr])
    return site.replaced(genome, ast.Call(ast.Attribute(call.func.value, how, ast.Load()), call.args, call.keywords))


def add_term(genome: Genome, rng: random.Random) -> Genome | None:
    """A further summary and a term of the score made from it, added with a weight or multiplied in."""
    key = main_score(genome)
    if key is None:
        return None
    genome, made = with_term(genome, rng)
    held = genome.scores[key]
    inner, outer = split_head_reduction(held)
    template = rng.choice(["a + weight * b", "a * b", "maximum(a, b)"])
    joined = outer(fill(template, a=inner, b=made))
    genome = genome.with_part("scores", key, joined)
    return genome.with_knob("weight") if "weight" in template else genome


def drop_part(genome: Genome, rng: random.Random) -> Genome | None:
    """One side of a sum, product or set operation alone."""
    site = choose_site(genome, rng, lambda node: isinstance(node, ast.BinOp))
    if site is None:
        return None
    node: ast.BinOp = site.node
    return site.replaced(genome, rng.choice([node.left, node.right]))


def subdivide(genome: Genome, rng: random.Random) -> Genome | None:
    """Summaries of sub-pages instead of whole pages; the best sub-page speaks for its page (LServe)."""
    key = main_score(genome)
    if key is None or any("split" in ast.dump(tree) for tree in genome.fields.values()):
        return None
    fields = {}
    for name, tree in genome.fields.items():
        for node in sites(tree, ast.Name):
            if isinstance(node, ast.Name) and node.id in ("k", "v"):
                tree = swapped(tree, node, expression(f"{node.id}.split(token, part=sub)"))
                break
        fields[name] = tree
    inner, outer = split_head_reduction(genome.scores[key])
    return replace(genome, fields=fields).with_part("scores", key, outer(fill("x.max(part)", x=inner))).with_knob("sub")


def add_selector(genome: Genome, rng: random.Random) -> Genome | None:
    """Unites the selection with a static pattern."""
    text, knob = rng.choice([
        ("a | random(random_pages)", "random_pages"), ("a | stride(stride_pages)", "stride_pages"),
        ("a | first(sink)", "sink"), ("a | last(recent)", "recent"),
    ])  # fmt: skip
    return genome.with_part("select", "", fill(text, a=genome.select)).with_knob(knob)


def spare_forced(genome: Genome, rng: random.Random) -> Genome | None:
    """Lets a scored selector choose only among pages that no static pattern forces anyway."""
    statics = [node for node in sites(genome.select, ast.Call) if is_call(node, "first", "last")]
    site = choose_site(genome, rng, lambda node: is_call(node, "topk", "topp", "above")
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
    site = choose_site(genome, rng, lambda node: is_call(node, "topk") and len(node.args) == 2)
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
    site = choose_site(genome, rng, lambda node: is_call(node, "topk", "topp", "above"))
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
    key = main_score(genome)
    if key is None or "softmax" in ast.dump(genome.scores[key]):
        return None
    inner, outer = split_head_reduction(genome.scores[key])
    return genome.with_part("scores", key, outer(fill("softmax(ctx.scale * x, page)", x=inner)))


def share_heads(genome: Genome, rng: random.Random) -> Genome | None:
    """One list for all KV heads, or back to one each."""
    key = main_score(genome)
    if key is None:
        return None
    tree = genome.scores[key]
    if is_call(tree, "share"):
        assert isinstance(tree, ast.Call)
        return genome.with_part("scores", key, tree.args[0])
    return genome.with_part("scores", key, fill(f'share(x, "{rng.choice(["max", "sum", "mean"])}")', x=tree))


def lists_per_head(genome: Genome, rng: random.Random) -> Genome | None:
    """Every query head chooses its own pages."""
    key = main_score(genome)
    if key is None:
        return None
    inner, _ = split_head_reduction(genome.scores[key])
    return None if inner is genome.scores[key] else genome.with_part("scores", key, inner)


def by_layer(genome: Genome, rng: random.Random) -> Genome | None:
    """Dense or window-only in the first layers, the selection elsewhere."""
    other = rng.choice(["everything()", "first(sink) | last(recent)"])
    made = fill(f"where(ctx.layer < dense_layers, {other}, a)", a=genome.select)
    genome = genome.with_part("select", "", made).with_knob("dense_layers")
    return genome.with_knob("sink").with_knob("recent")


def change_precision(genome: Genome, rng: random.Random) -> Genome | None:
    """Another precision of the stored summaries: half the bytes of bf16 in fp8.

    The precision of the KV cache stays as it is: it belongs to the deployment.
    """
    if not genome.fields:
        return None
    options, choices = dict(genome.options), ("kv", "bf16", "fp8_e4m3", "fp8_e5m2")
    held = options.pop("summaries", ast.Constant(choices[0]))
    chosen = rng.choice([name for name in choices if name != getattr(held, "value", None)])
    if chosen != choices[0]:
        options["summaries"] = ast.Constant(chosen)
    return replace(genome, options=options)


def reuse_over_steps(genome: Genome, rng: random.Random) -> Genome | None:
    """A choice by score is kept for some steps, as in LServe; or one that is kept is made at every step."""
    return _reused(genome, rng, "reuse(a, every=every)", "every")


def reuse_over_layers(genome: Genome, rng: random.Random) -> Genome | None:
    """Some layers choose, the layers above each read the same pages (TidalDecode); or every layer chooses."""
    apart = rng.choice([2, 4])
    return _reused(genome, rng, f"reuse(a, layers=ctx.layer % {apart} == 0)", "layers")


def _reused(genome: Genome, rng: random.Random, template: str, keyword: str) -> Genome | None:
    def is_reuse(node: Any) -> bool:
        return is_call(node, "reuse") and any(word.arg == keyword for word in node.keywords)

    held = choose_site(genome, rng, is_reuse)
    if held is not None:
        return held.replaced(genome, held.node.args[0])
    site = choose_site(genome, rng, lambda node: is_call(node, "topk", "topp", "above"))
    if site is None:
        return None
    made = site.replaced(genome, fill(template, a=site.node))
    return made.with_knob("every") if keyword == "every" else made


def smooth_over_steps(genome: Genome, rng: random.Random) -> Genome | None:
    """The score of earlier steps counts on, less at every step; or only the present one counts."""
    key = main_score(genome)
    if key is None:
        return None
    name = next(word for word in ("smoothed", *(f"smoothed{i}" for i in range(2, 99))) if word not in genome.names)
    if name != "smoothed":  # one is enough: leave it out again
        inner = sites(genome.scores[key], ast.BinOp)
        held = [node for node in inner if ast.unparse(node.right) == "decay * m.smoothed"]  # type: ignore[attr-defined]
        return genome.with_part("scores", key, swapped(genome.scores[key], held[0], held[0].left)) if held else None  # type: ignore[attr-defined]
    written = expression("score" if set(genome.scores) == {"score"} else f"score.{key}")
    made = genome.with_part("scores", key, fill("x + decay * m.smoothed", x=genome.scores[key])).with_knob("decay")
    declared = rng.choice(["memory.step(page)", "memory.step(page, every=every)"])
    made = made.with_knob("every") if "every" in declared else made
    names = {**made.names, name: expression(declared)}
    return replace(made, names=names, remember={**made.remember, name: written})


def _with_open_periods(genome: Genome) -> Genome:
    """A period written out becomes the knob `every` of the same default, unless that name is taken."""
    if "every" in genome.names:
        return genome
    trees = [tree for tree in genome.names.values() if is_declaration(tree, "memory")] + [genome.select]
    words = [word for tree in trees for node in sites(tree, ast.Call) for word in node.keywords if word.arg == "every"]  # type: ignore[attr-defined]
    fixed = [word.value.value for word in words if isinstance(word.value, ast.Constant)]
    if not fixed:
        return genome
    made = copy.deepcopy(genome)
    for tree in [*made.names.values(), made.select]:
        for call in sites(tree, ast.Call):
            for word in call.keywords:  # type: ignore[attr-defined]
                if word.arg == "every" and getattr(word.value, "value", None) == fixed[0]:
                    word.value = ast.Name("every", ast.Load())
    declared = expression(SHARED["every"].declaration)
    assert isinstance(declared, ast.Call)
    for word in declared.keywords:
        if word.arg == "default":
            word.value = ast.Constant(fixed[0])
    return replace(made, names={"every": declared, **made.names})


OPERATORS: dict[str, Operator] = {
    function.__name__: function
    for function in (
        swap_reducer, add_term, drop_part, subdivide, add_selector, spare_forced, change_budget, change_selector,
        normalise_heads, share_heads, lists_per_head, by_layer, change_precision, reuse_over_steps, reuse_over_layers,
        smooth_over_steps, change_time, *MOVES,
    )
}  # fmt: skip


def unite(first: Genome, second: Genome, rng: random.Random) -> Genome | None:
    """Crossover: both scores joined into one, what the second one's remembers included; or one's score under the other
    one's selection."""
    if rng.random() < 0.4:
        return grafted(first, second)
    a, b = main_score(first), main_score(second)
    if a is None or b is None:
        return None
    template = rng.choice(["l + weight * r", "maximum(l, r)", "l * sigmoid(r)"])
    return joined(first, a, second, b, template).with_knob("weight")


@dataclass(frozen=True)
class Offspring:
    """A valid new program: its text, and how it was made."""

    source: str
    operator: str
    note: str


def _valid(genome: Genome | None, doc: str, known: set[str], tally: Counter[str]) -> str | None:
    """The text of a genome that is a program of a new structure. Counts what became of it in `tally`."""
    if genome is None:
        tally["inapplicable"] += 1
        return None
    try:
        text = genome.render(doc)
        program = parsed(text)
        program.bind()
    except VortexError:
        tally["discarded"] += 1
        return None
    if structure_hash(program) in known:
        tally["known"] += 1
        return None
    tally["valid"] += 1
    return text


def mutate(
    source: str,
    rng: random.Random,
    known: set[str],
    operators: Sequence[str] = tuple(OPERATORS),
    *,
    depth: int = 1,
    tally: Counter[str] | None = None,
) -> Offspring | None:
    """A valid mutation of the program whose structure is not in `known`; None when `operators` yield none.

    `depth` operators are applied one after the other. `tally` counts attempts by what became of them: ``inapplicable``,
    ``discarded`` (no valid program), ``known`` or ``valid``.
    """
    tally = Counter() if tally is None else tally
    parent = _taken_apart(source, tally)
    if parent is None:
        return None
    for _ in range(_ATTEMPTS):
        names = [rng.choice(list(operators)) for _ in range(depth)]
        genome: Genome | None = parent
        for name in names:
            genome = OPERATORS[name](genome, rng) if genome else None
        genome = _with_open_periods(genome) if genome else None
        note = "; ".join(" ".join((OPERATORS[name].__doc__ or name).split()) for name in names)
        text = _valid(genome, f"{parent.name}, changed. {note}", known, tally)
        if text:
            return Offspring(text, "+".join(names), note)
    return None


def cross(
    first: str, second: str, rng: random.Random, known: set[str], *, tally: Counter[str] | None = None
) -> Offspring | None:
    """A valid crossover of two programs whose structure is not in `known`, or None. `tally` as in `mutate`."""
    tally = Counter() if tally is None else tally
    a, b = _taken_apart(first, tally), _taken_apart(second, tally)
    if a is None or b is None:
        return None
    for _ in range(_ATTEMPTS):
        text = _valid(unite(a, b, rng), f"{a.name} joined with {b.name}.", known, tally)
        if text:
            return Offspring(text, "cross", f"{a.name} joined with {b.name}")
    return None


def _taken_apart(source: str, tally: Counter[str]) -> Genome | None:
    """None for a program whose expressions, written out, are too large."""
    try:
        return Genome.of(source)
    except VortexError:
        tally["inapplicable"] += 1
        return None
