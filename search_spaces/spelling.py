"""Expressions with the values of their knobs, and texts that are equal where only numbers, names or order differ."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from vortexlab.dsl.ir import Attr
from vortexlab.search_spaces.layout import clone
from vortexlab.search_spaces.sites import is_call


def shortened(value: Attr) -> str:
    """A knob's value as text: four digits of a float."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class _Values(ast.NodeTransformer):
    def __init__(self, values: Mapping[str, Attr], blank: bool = False):
        self.values, self.blank = values, blank

    def visit_Name(self, node: ast.Name) -> ast.expr:  # the name is ast's
        if node.id not in self.values:
            return node
        value = self.values[node.id]
        return ast.Constant(float(shortened(value)) if isinstance(value, float) else value)

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        number = self.blank and isinstance(node.value, (int, float)) and not isinstance(node.value, bool)
        return ast.Constant(0) if number else node


def bound(tree: ast.expr, knobs: Mapping[str, Attr]) -> ast.expr:
    """The expression with the values of its knobs."""
    made: ast.expr = _Values(knobs).visit(clone(tree))
    return made


def blank(tree: ast.expr, knobs: set[str]) -> str:
    """A text that is equal for expressions that differ in numbers, knobs, and the order of sums, products and sets."""
    return _sorted(_Values(dict.fromkeys(knobs, 0), blank=True).visit(clone(tree)))


def _sorted(tree: ast.expr) -> str:
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, (ast.Add, ast.Mult, ast.BitOr, ast.BitAnd)):
        sides = sorted(map(_sorted, _operands(tree, type(tree.op))))
        return f"{type(tree.op).__name__}({', '.join(sides)})"
    if isinstance(tree, ast.Call):
        items = [_sorted(item) for item in tree.args]
        if is_call(tree, "maximum", "minimum"):
            items.sort()
        items += sorted(f"{word.arg}={_sorted(word.value)}" for word in tree.keywords)
        if isinstance(tree.func, ast.Attribute):
            return f"{_sorted(tree.func.value)}.{tree.func.attr}({', '.join(items)})"
        return f"{ast.unparse(tree.func)}({', '.join(items)})"
    if isinstance(tree, (ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare)):
        signs = tree.ops if isinstance(tree, ast.Compare) else [tree.op]
        inner = [_sorted(child) for child in ast.iter_child_nodes(tree) if isinstance(child, ast.expr)]
        return f"{' '.join(type(sign).__name__ for sign in signs)}({', '.join(inner)})"
    return ast.unparse(tree)


def _operands(tree: ast.expr, sign: type[ast.operator]) -> list[ast.expr]:
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, sign):
        return [*_operands(tree.left, sign), *_operands(tree.right, sign)]
    return [tree]
