"""The parts that a program is made of: the selectors of its selection, the operands of its sums and products."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from vortexlab.dsl.words import SELECTORS
from vortexlab.search_spaces.genome import expression, is_attribute
from vortexlab.search_spaces.layout import clone
from vortexlab.search_spaces.sites import REDUCERS, is_call

#: Selectors that are parts; `everything()` is the absence of a choice.
CHOOSING = tuple(name for name in SELECTORS if name != "everything")
SCORED = ("topk", "topp", "above")
_INPUTS = ("q", "k", "v", "s", "m", "score", "pages")
#: Characters of an expression in a sentence.
LONGEST = 72


def written(tree: ast.expr, named: Mapping[str, str] | None = None) -> str:
    """The expression as text for a sentence: a selector without what it chooses among.

    In long ones `named` variables, by the dump of what they stand for, take the place of their values; if that is not
    enough the middle is cut.
    """
    if isinstance(tree, ast.Call) and is_call(tree, *SELECTORS):
        tree = ast.Call(tree.func, tree.args, [word for word in tree.keywords if word.arg != "among"])
    text = ast.unparse(tree)
    if len(text) > LONGEST and named:
        text = ast.unparse(_Abbreviate(named).visit(expression(text)))
    half = (LONGEST - 3) // 2
    return text if len(text) <= LONGEST else f"{text[:half]}...{text[-half:]}"


class _Abbreviate(ast.NodeTransformer):
    def __init__(self, named: Mapping[str, str]):
        self.named = named

    def visit(self, node: ast.AST) -> Any:
        name = self.named.get(ast.dump(node)) if isinstance(node, ast.expr) else None
        return self.generic_visit(node) if name is None else ast.Name(name, ast.Load())


class _Everywhere(ast.NodeTransformer):
    def __init__(self, key: str, new: ast.expr):
        self.key, self.new = key, new

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.expr) and ast.dump(node) == self.key:
            return clone(self.new)
        return self.generic_visit(node)


def everywhere(tree: ast.expr, part: ast.expr, new: ast.expr) -> ast.expr:
    """A copy of `tree` with every subtree that is written like `part` replaced."""
    made: ast.expr = _Everywhere(ast.dump(part), new).visit(clone(tree))
    return made


def in_order(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes, each before what is inside it, from left to right."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        yield from in_order(child)


def selectors(tree: ast.expr, sets: frozenset[str] = frozenset()) -> list[ast.expr]:
    """The different selectors in an expression of sets, and the remembered sets of these names, from left to right."""
    found: dict[str, ast.expr] = {}
    for node in in_order(tree):
        if isinstance(node, ast.expr) and (is_call(node, *CHOOSING) or (is_attribute(node, "m") and node.attr in sets)):
            found.setdefault(ast.dump(node), node)
    return list(found.values())


def among(call: ast.Call) -> ast.expr | None:
    """What a selector chooses among; None for every page."""
    return next((word.value for word in call.keywords if word.arg == "among"), None)


def is_shortlist(tree: ast.expr | None) -> bool:
    """Whether a set is chosen by score, outside of every complement."""
    if tree is None or (isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Invert)):
        return False
    if is_call(tree, *SCORED):
        return True
    return isinstance(tree, ast.BinOp) and (is_shortlist(tree.left) or is_shortlist(tree.right))


def summands(tree: ast.expr, sign: int = 1) -> list[tuple[int, ast.expr]]:
    """The terms of a sum with their signs; the expression itself when it is none."""
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, (ast.Add, ast.Sub)):
        right = sign if isinstance(tree.op, ast.Add) else -sign
        return [*summands(tree.left, sign), *summands(tree.right, right)]
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub) and not isinstance(tree.operand, ast.Constant):
        return summands(tree.operand, -sign)
    return [(sign, tree)]


def factors(tree: ast.expr) -> list[ast.expr]:
    """The factors of a product; the expression itself when it is none."""
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Mult):
        return [*factors(tree.left), *factors(tree.right)]
    return [tree]


class MethodCall(ast.Call):
    """What `is_method` has seen: a call of an attribute."""

    func: ast.Attribute


def is_method(node: ast.AST, *names: str) -> TypeGuard[MethodCall]:
    """Whether the expression is ``x.name(...)`` for one of the names, or for any where none is given."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    return not names or node.func.attr in names


def reduced_axes(node: ast.AST) -> set[str]:
    """The axes that a call like ``x.max(head)`` or ``x.reduce(how, head)`` reduces; none for any other expression."""
    if not is_method(node, *REDUCERS, "reduce"):
        return set()
    words = node.args[1:] if node.func.attr == "reduce" else node.args
    return {word.id for word in words if isinstance(word, ast.Name)}


def is_constant(tree: ast.expr, learned: frozenset[str] = frozenset()) -> bool:
    """Whether a value depends on neither keys nor queries nor pages, nor on the parameters named `learned`."""
    return not any(isinstance(n, ast.Name) and (n.id in _INPUTS or n.id in learned) for n in ast.walk(tree))
