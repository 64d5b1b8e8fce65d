"""A selection without one of its selectors, taken out wherever it stands."""

from __future__ import annotations

import ast

from vortexlab.search_spaces.anatomy import among, is_shortlist
from vortexlab.search_spaces.genome import expression
from vortexlab.search_spaces.sites import is_call

_EVERYTHING = expression("everything()")


class NothingLeft(Exception):
    """A place that needs a set of pages has none."""


def narrows(tree: ast.expr, key: str) -> bool:
    """Whether some selector chooses among the pages of the one with this dump."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return any(chosen is not None and ast.dump(chosen) == key for chosen in map(among, calls))


def without(tree: ast.expr, key: str) -> ast.expr | None:
    """A set without the selector that has this dump; None when no pages are left.

    A selector that chose from a shortlist leaves the shortlist. Raises `NothingLeft` for an empty case of `where`.
    """
    if ast.dump(tree) == key:
        chosen = among(tree) if isinstance(tree, ast.Call) else None
        return chosen if is_shortlist(chosen) else None
    if isinstance(tree, ast.UnaryOp):
        inner = without(tree.operand, key)
        return _EVERYTHING if inner is None else ast.UnaryOp(tree.op, inner)
    if isinstance(tree, ast.BinOp):
        left, right = without(tree.left, key), without(tree.right, key)
        if isinstance(tree.op, ast.BitOr):
            return right if left is None else left if right is None else ast.BinOp(left, tree.op, right)
        if isinstance(tree.op, ast.BitAnd) and key in (ast.dump(tree.left), ast.dump(tree.right)):
            return right if left is None else left
        if left is None or right is None:
            return left if isinstance(tree.op, ast.Sub) else None
        return ast.BinOp(left, tree.op, right)
    if not isinstance(tree, ast.Call):
        return tree
    if is_call(tree, "where"):
        cases = [without(case, key) for case in tree.args[1:]]
        if None in cases:
            raise NothingLeft
        return ast.Call(tree.func, [tree.args[0], *(case for case in cases if case is not None)], tree.keywords)
    if is_call(tree, "reuse"):
        kept = without(tree.args[0], key)
        return None if kept is None else ast.Call(tree.func, [kept, *tree.args[1:]], tree.keywords)
    chosen = among(tree)
    if chosen is None:
        return tree
    if ast.dump(chosen) == key:  # a shortlist: what it was made from is chosen among
        rest = among(chosen) if isinstance(chosen, ast.Call) else None
    else:
        rest = without(chosen, key)
        if rest is None:
            return None
    keywords = [word for word in tree.keywords if word.arg != "among"]
    if rest is not None and not is_call(rest, "everything"):
        keywords.append(ast.keyword("among", rest))
    return ast.Call(tree.func, tree.args, keywords)


class _Output(ast.NodeTransformer):
    """Takes a selector out of the sets that an attention output speaks of."""

    def __init__(self, key: str):
        self.key = key

    def visit_Call(self, node: ast.Call) -> ast.expr:  # the name is ast's
        if is_call(node, "attention", "member") and node.args:
            kept = without(node.args[0], self.key)
            if kept is None:
                raise NothingLeft
            node = ast.Call(node.func, [kept, *node.args[1:]], node.keywords)
        made: ast.expr = self.generic_visit(node)  # type: ignore[assignment]
        return made


def output_without(tree: ast.expr, key: str) -> ast.expr:
    """An attention output without the selector that has this dump. Raises `NothingLeft` where it needs that one."""
    made: ast.expr = _Output(key).visit(expression(ast.unparse(tree)))
    return made
