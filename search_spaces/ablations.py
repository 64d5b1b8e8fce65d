"""The smallest ablations of a program: each is the program less one part, a valid program of its own.

A part is a selector, a term or factor of a score or summary, the way heads share a list, parts of a page, reuse,
sparse prefill, an attention output or a precision of its own. A selector is taken out wherever it stands, so pages that
it forced may be chosen by the others. Learned constants and elaborate scores give way to the mean key of a page.
Knobs keep their values. What reads every page is left out: dense attention is what all is measured against.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from vortexlab.dsl import canonical_hash
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import SET, Attr, Program
from vortexlab.dsl.normal import normal_form
from vortexlab.search_spaces.anatomy import (
    SCORED,
    everywhere,
    factors,
    in_order,
    is_constant,
    is_method,
    is_shortlist,
    reduced_axes,
    selectors,
    summands,
    written,
)
from vortexlab.search_spaces.catalogue import phase
from vortexlab.search_spaces.genome import Genome, expression, fill, mentions, swapped
from vortexlab.search_spaces.moves import whole_pages
from vortexlab.search_spaces.parsed import parsed
from vortexlab.search_spaces.sites import is_call
from vortexlab.search_spaces.without import NothingLeft, narrows, output_without, without

_UNWRAPPED = ("softmax", "share", "relu", "sigmoid", "silu", "tanh")
Found = Iterator[tuple[str, Genome]]


@dataclass(frozen=True)
class Ablation:
    """`change` says in words what differs from the program; `knobs` are the program's as far as they are left."""

    change: str
    source: str
    knobs: Mapping[str, Attr]
    hash: str


def ablations(source: str, knobs: Mapping[str, Attr] | None = None) -> list[Ablation]:
    """The smallest ablations of a program with these knobs, no two of them the same program; none of dense attention.

    Raises `VortexError` when the text is no program, cannot be taken apart, or a knob is out of range.
    """
    program, genome = parsed(source), Genome.of(source)
    knobs = {**program.defaults, **(knobs or {})}
    seen = {canonical_hash(program.bind(knobs))}
    made: list[Ablation] = []
    for words, changed in _changes(genome, program):
        again = sum(item.change.startswith(words) for item in made)
        change = f"{words} ({again + 1})" if again else words
        found = _checked(changed, f"{program.name} {change}.", knobs)
        if found is not None and found[2] not in seen:
            seen.add(found[2])
            made.append(Ablation(change, *found))
    return made


def _checked(genome: Genome, doc: str, knobs: Mapping[str, Attr]) -> tuple[str, dict[str, Attr], str] | None:
    """Text, knobs and canonical hash; None for what is no program, or reads every page."""
    try:
        text = genome.render(doc)
        program = parsed(text)
        values = {name: value for name, value in knobs.items() if name in program.knobs}
        bound = program.bind(values)
    except VortexError:
        return None
    return None if _reads_everything(bound) else (text, values, canonical_hash(bound))


def _reads_everything(bound: Program) -> bool:
    form = normal_form(bound)
    term = form.terms[form.output]
    if term.label[:2] == ("program", "output"):
        if "result" in term.label:
            return False
        term = form.terms[term.inputs[0]]
    return term.label == ("everything",)


def _changes(genome: Genome, program: Program) -> Found:
    yield from _selection(genome, program)
    yield from _budgets(genome)
    yield from _reuse(genome)
    yield from _terms(genome, program)
    yield from _heads(genome, program)
    yield from _finer(genome)
    yield from _mean_key(genome, program)
    yield from _own_output(genome, program)
    if genome.pool is not None and phase(program) != "prefill":
        options = {key: tree for key, tree in genome.options.items() if key != "block"}
        yield "with dense prefill", replace(genome, pool=None, options=options)
    for key, words in (("summaries", "summaries"), ("kv", "a KV cache")):
        if key in genome.options:
            options = {name: tree for name, tree in genome.options.items() if name != key}
            yield f"with {words} in the model's precision", replace(genome, options=options)


# --- selection ---------------------------------------------------------------------------------------------------


def _selection(genome: Genome, program: Program) -> Found:
    sets = frozenset(name for name, item in program.memories.items() if item.type.kind == SET)
    for leaf in selectors(genome.select, sets):
        key = ast.dump(leaf)
        try:
            select = without(genome.select, key)
            attend = None if genome.attend is None else output_without(genome.attend, key)
        except NothingLeft:
            continue
        if select is not None:
            shortlist = "the shortlist " if is_shortlist(leaf) and narrows(genome.select, key) else ""
            yield f"without {shortlist}{written(leaf)}", replace(genome, select=select, attend=attend)


def _budgets(genome: Genome) -> Found:
    """Cases of the selection, as by layer, and upper limits of selectors that take as many pages as they need."""
    for node in in_order(genome.select):
        if not isinstance(node, ast.Call):
            continue
        if is_call(node, "where") and not _asks(node.args[0], "prefill"):
            condition, then, otherwise = node.args
            for words, branch in (("without the case", otherwise), ("everywhere as if", then)):
                if ast.unparse(branch) not in ("everything()", "ctx.pages"):
                    yield f"{words} {written(condition)}", replace(genome, select=swapped(genome.select, node, branch))
        limits = [word for word in node.keywords if word.arg == "max"]
        if limits and is_call(node, *SCORED):
            free = ast.Call(node.func, node.args, [word for word in node.keywords if word.arg != "max"])
            change = f"without the limit of {written(limits[0].value)} pages"
            yield change, replace(genome, select=swapped(genome.select, node, free))


def _asks(tree: ast.expr, fact: str) -> bool:
    return f"ctx.{fact}" in ast.unparse(tree)


def _reuse(genome: Genome) -> Found:
    for node in in_order(genome.select):
        if isinstance(node, ast.Call) and is_call(node, "reuse"):
            over = "layers" if any(word.arg == "layers" for word in node.keywords) else "steps"
            yield f"without reuse over {over}", replace(genome, select=swapped(genome.select, node, node.args[0]))


# --- scores and summaries ----------------------------------------------------------------------------------------

#: What can be left out of a value, in words, with the subtree that it changes and what then stands in its place.
Cut = tuple[str, ast.expr, ast.expr]


@dataclass(frozen=True)
class _Cuts:
    """Finds the cuts of one value. `inputs`: names of which one must be left, for pages to be told apart."""

    inputs: tuple[str, ...]
    learned: frozenset[str]
    named: Mapping[str, str]

    def of(self, tree: ast.expr, products: bool = True) -> Iterator[Cut]:
        """The cuts of the value and of what it is made of. Products below a sum over channels are left whole."""
        inner: list[ast.expr] = []
        if len(terms := summands(tree)) > 1:
            yield from self.sums(tree, terms)
            inner = [term for _, term in terms]
        elif isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Mult):
            inner = factors(tree)
            if products:
                yield from self._products(tree, inner)
        elif isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Div):
            inner = [tree.left]
            if not is_constant(tree.right, self.learned):
                yield f"not divided by {self._written(tree.right)}", tree, tree.left
        elif isinstance(tree, ast.Call) and isinstance(tree.func, ast.Attribute):
            inner = [tree.func.value]
            axes = reduced_axes(tree)
            products = products and "channel" not in axes
            window = tree.func.value
            if is_method(window, "window") and axes & {word.arg for word in window.keywords}:
                yield "without the pages beside a page", tree, window.func.value
        elif isinstance(tree, ast.Call):
            yield from self._calls(tree)
            inner = [] if is_call(tree, "dot") else tree.args[1:] if is_call(tree, "where") else tree.args
            if is_call(tree, "exp"):  # what is subtracted there keeps it finite
                inner = [term for _, term in summands(tree.args[0])]
        for item in inner:
            yield from self.of(item, products)

    def sums(self, tree: ast.expr, terms: list[tuple[int, ast.expr]]) -> Iterator[Cut]:
        """A sum without each of its terms. A term that others are measured from (a mean, a maximum) is no part."""
        for number, (_, term) in enumerate(terms):
            rest = [item for at, item in enumerate(terms) if at != number]
            first = next((item for item in rest if item[0] > 0), None)
            if first is None or is_constant(term, self.learned) or any(_holds(item, term) for _, item in rest):
                continue
            made = first[1]
            for sign, item in (item for item in rest if item is not first):
                made = ast.BinOp(made, ast.Add() if sign > 0 else ast.Sub(), item)
            if self._sees(made):
                yield f"without the term {self._written(term)}", tree, made

    def _products(self, tree: ast.expr, items: list[ast.expr]) -> Iterator[Cut]:
        for number, factor in enumerate(items):
            rest, *others = (item for at, item in enumerate(items) if at != number)
            for item in others:
                rest = ast.BinOp(rest, ast.Mult(), item)
            if not is_constant(factor, self.learned) and self._sees(rest) and not _holds(rest, factor):
                yield f"without the factor {self._written(factor)}", tree, rest

    def _calls(self, tree: ast.Call) -> Iterator[Cut]:
        if is_call(tree, "maximum", "minimum", "max", "min"):
            if not any(is_constant(item, self.learned) for item in tree.args):
                for part, other in (tree.args, tree.args[::-1]):
                    if self._sees(other) and not _holds(other, part):
                        yield f"without {self._written(part)}", tree, other
        elif is_call(tree, "where"):
            condition, then, otherwise = tree.args
            for words, branch in (("without the case", otherwise), ("everywhere as if", then)):
                if not is_constant(branch, self.learned):
                    yield f"{words} {self._written(condition)}", tree, branch
        elif is_call(tree, *_UNWRAPPED):
            assert isinstance(tree.func, ast.Name)
            yield f"without the {tree.func.id} of the score", tree, tree.args[0]

    def _sees(self, tree: ast.expr) -> bool:
        return any(mentions(tree, name) for name in self.inputs)

    def _written(self, tree: ast.expr) -> str:
        return written(tree, self.named)


def _terms(genome: Genome, program: Program) -> Found:
    learned = frozenset(program.params)
    for place, key, tree in genome.parts():
        if place != "select":
            cuts = _Cuts(("k", "v") if place == "fields" else ("s", "m"), learned, genome.locals)
            where = "" if place == "scores" else f" in the summary {key}"
            for change, part, rest in cuts.of(tree):
                yield change + where, genome.with_part(place, key, everywhere(tree, part, rest))


def _holds(tree: ast.expr, part: ast.expr) -> bool:
    key = ast.dump(part)
    return any(ast.dump(node) == key for node in ast.walk(tree))


class _Unwrap(ast.NodeTransformer):
    """Replaces calls of methods that `match` by what they are called on."""

    def __init__(self, match: Callable[[ast.Call], bool]):
        self.match = match

    def visit_Call(self, node: ast.Call) -> ast.AST:  # the name is ast's
        made = self.generic_visit(node)
        if self.match(node) and isinstance(made, ast.Call) and isinstance(made.func, ast.Attribute):
            return made.func.value
        return made


def _unwrapped(tree: ast.expr, match: Callable[[ast.Call], bool]) -> ast.expr:
    made: ast.expr = _Unwrap(match).visit(expression(ast.unparse(tree)))
    return made


def _heads(genome: Genome, program: Program) -> Found:
    """The heads of a group share a list, or have one each: the other way."""
    if not genome.scores:
        return
    if "head" in program.nodes[program.output].type.axes:
        scores = {key: fill("x.max(head)", x=tree) for key, tree in genome.scores.items()}
        yield "with one list for a group of heads, by the best of them", replace(genome, scores=scores)
    else:
        scores = {
            key: _unwrapped(tree, lambda call: reduced_axes(call) == {"head"}) for key, tree in genome.scores.items()
        }
        yield "with a list for every query head", replace(genome, scores=scores)


def _finer(genome: Genome) -> Found:
    """Parts of a page, and channels that are left out."""
    whole = whole_pages(genome, random.Random(0))
    if whole is not None:
        yield "with whole pages instead of parts", whole

    def cuts(call: ast.Call) -> bool:
        return is_method(call, "slice") and mentions(call, "channel")

    fields = {key: _unwrapped(tree, cuts) for key, tree in genome.fields.items()}
    scores = {key: _unwrapped(tree, cuts) for key, tree in genome.scores.items()}
    yield "with all channels", replace(genome, fields=fields, scores=scores)


def _mean_key(genome: Genome, program: Program) -> Found:
    """The plainest score, q . mean key, in the place of each score that is not compared with a number."""
    for key, tree in genome.scores.items():
        name = "score" if key == "score" else f"score.{key}"
        uses = [node for node in ast.walk(genome.select) if isinstance(node, ast.Call) and is_call(node, "above")]
        if any(ast.unparse(node.args[0]) == name for node in uses):
            continue
        field = next(word for word in ("centre", *(f"centre{n}" for n in range(2, 99))) if word not in genome.fields)
        plain = expression(f"dot(q, s.{field}, channel)")
        if "head" not in program.nodes[program.output].type.axes:
            plain = fill("x.max(head)", x=plain)
        if _asks(tree, "scale"):
            plain = fill("ctx.scale * x", x=plain)
        fields = {**genome.fields, field: expression("k.mean(token)")}
        which = "" if key == "score" else f" {key}"
        change = f"with the product of query and mean key as its score{which}"
        yield change, replace(genome, fields=fields).with_part("scores", key, plain)


def _own_output(genome: Genome, program: Program) -> Found:
    """Terms of an attention output, and the whole of it."""
    tree = genome.attend
    if tree is None:
        return
    terms = summands(tree)
    if len(terms) > 1:
        for change, part, rest in _Cuts(("attention",), frozenset(program.params), genome.locals).sums(tree, terms):
            yield f"{change} of the output", replace(genome, attend=swapped(tree, part, rest))
    yield "with plain attention over the pages", replace(genome, attend=None)
