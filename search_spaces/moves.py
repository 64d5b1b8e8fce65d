"""Operators that make or replace whole selectors: a score from nothing, two selectors for one, coarse to fine."""

from __future__ import annotations

import ast
import random
from dataclasses import replace

from vortexlab.search_spaces.genome import Genome, expression, fill, mentions, sites, swapped
from vortexlab.search_spaces.layout import clone
from vortexlab.search_spaces.sites import choose_site, is_call, main_score, split_head_reduction, with_term

_SCORED = ("topk", "topp", "above")
_SHORTLIST = "maximum(8, floor(fraction * ctx.pages))"


def _fresh_score(genome: Genome, rng: random.Random) -> tuple[Genome, ast.expr]:
    """The genome with the summaries of a random term, and that term as one score for a KV head."""
    genome, term = with_term(genome, rng)
    if mentions(term, "q") and not mentions(term, "head"):
        term = fill(f"x.{rng.choice(['max', 'max', 'mean', 'sum'])}(head)", x=term)
    return genome, term


def choose_by_score(genome: Genome, rng: random.Random) -> Genome | None:
    """Pages chosen by a score beside static ones, in a program that has no score."""
    if genome.scores:
        return None
    genome, score = _fresh_score(genome, rng)
    forced = genome.select
    if rng.random() < 0.5:
        forced = expression("first(sink) | last(recent)")
        genome = genome.with_knob("sink").with_knob("recent")
    select = fill("a | topk(score, budget, among=~a)", a=forced)
    return replace(genome, scores={"score": score}, select=select).with_knob("budget")


def replace_score(genome: Genome, rng: random.Random) -> Genome | None:
    """Another score altogether under the same selection."""
    key = main_score(genome)
    if key is None:
        return None
    genome, score = _fresh_score(genome, rng)
    return genome.with_part("scores", key, score)


def mean_query(genome: Genome, rng: random.Random) -> Genome | None:
    """The heads of a group joined in the query, before the products, instead of in the scores after them."""
    key = main_score(genome)
    if key is None:
        return None
    inner, _ = split_head_reduction(genome.scores[key])
    if inner is genome.scores[key] or not mentions(inner, "q"):
        return None
    made = fill_name(inner, "q", expression(f"q.{rng.choice(['mean', 'mean', 'max'])}(head)"))
    return genome.with_part("scores", key, made)


def fill_name(tree: ast.expr, name: str, value: ast.expr) -> ast.expr:
    return fill(ast.unparse(tree), **{name: value})


def whole_pages(genome: Genome, rng: random.Random) -> Genome | None:
    """Summaries of whole pages where they were of parts."""
    key = main_score(genome)
    cut = [
        node for tree in genome.fields.values() for node in sites(tree, ast.Call)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "split"
    ]  # fmt: skip
    if key is None or not cut:
        return None
    axes = {word.arg for call in cut for word in call.keywords}
    fields = {}
    for name, tree in genome.fields.items():
        for node in cut:
            if node in set(ast.walk(tree)):
                tree = swapped(tree, node, node.func.value)  # type: ignore[attr-defined]
                break
        fields[name] = tree
    score = genome.scores[key]
    for call in sites(score, ast.Call):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and any(
            isinstance(arg, ast.Name) and arg.id in axes for arg in call.args
        ):
            score = swapped(score, call, call.func.value)
            break
    return replace(genome, fields=fields).with_part("scores", key, score)


def _with_second_score(genome: Genome, rng: random.Random) -> tuple[Genome, str, str] | None:
    """The genome with a score more, and how a selection names the first and the new one; two are enough."""
    if len(genome.scores) != 1 or genome.remember:
        return None
    key = main_score(genome)
    assert key is not None
    first, select = key, genome.select
    if key == "score":
        first = "first"
        select = fill_name(select, "score", expression("score.first"))
    genome, term = _fresh_score(genome, rng)
    return replace(genome, scores={first: genome.scores[key], "second": term}, select=select), first, "second"


def split_selector(genome: Genome, rng: random.Random) -> Genome | None:
    """Two selectors for one: the pages that either of two scores puts first."""
    made = _with_second_score(genome, rng)
    site = choose_site(made[0], rng, lambda node: is_call(node, *_SCORED)) if made else None
    if made is None or site is None:
        return None
    also = clone(site.node)
    also.args[0] = expression("score.second")
    return site.replaced(made[0], ast.BinOp(site.node, ast.BitOr(), also))


def coarse_to_fine(genome: Genome, rng: random.Random) -> Genome | None:
    """A shortlist by one score, from which another one chooses."""
    made = _with_second_score(genome, rng)
    site = choose_site(made[0], rng, lambda node: is_call(node, *_SCORED)) if made else None
    if made is None or site is None:
        return None
    rough, fine = rng.choice([("score.second", site.node.args[0]), (ast.unparse(site.node.args[0]), "score.second")])
    among = [word for word in site.node.keywords if word.arg == "among"]
    shortlist = expression(f"topk({rough}, {_SHORTLIST})")
    assert isinstance(shortlist, ast.Call)
    shortlist.keywords += among
    other = [word for word in site.node.keywords if word.arg != "among"]
    score = expression(fine) if isinstance(fine, str) else fine
    call = ast.Call(
        site.node.func, [score, *site.node.args[1:]], [*other, ast.keyword("among", shortlist)]
    )
    return site.replaced(made[0], call).with_knob("fraction")


def one_selector(genome: Genome, rng: random.Random) -> Genome | None:
    """A selector that only chooses from what another one left chooses from every page."""
    def narrows(node: ast.AST) -> bool:
        return is_call(node, *_SCORED) and any(
            word.arg == "among" and any(is_call(inner, *_SCORED) for inner in ast.walk(word.value))
            for word in node.keywords  # type: ignore[attr-defined]
        )

    site = choose_site(genome, rng, narrows)
    if site is None:
        return None
    kept = [word for word in site.node.keywords if word.arg != "among"]
    return site.replaced(genome, ast.Call(site.node.func, site.node.args, kept))


def force_ends(genome: Genome, rng: random.Random) -> Genome | None:
    """Sinks and a window beside what is chosen by score, which then chooses among the others (StreamingLLM)."""
    if any(is_call(node, "first", "last") for node in ast.walk(genome.select)):
        return None
    site = choose_site(genome, rng, lambda node: is_call(node, *_SCORED)
                       and not any(word.arg == "among" for word in node.keywords))  # fmt: skip
    if site is None:
        return None
    among = ast.keyword("among", expression("~(first(sink) | last(recent))"))
    call = ast.Call(site.node.func, site.node.args, [*site.node.keywords, among])
    made = fill("first(sink) | last(recent) | a", a=swapped(site.tree, site.node, call))
    return genome.with_part("select", "", made).with_knob("sink").with_knob("recent")


MOVES = (
    choose_by_score, replace_score, mean_query, whole_pages, split_selector, coarse_to_fine, one_selector, force_ends,
)  # fmt: skip
