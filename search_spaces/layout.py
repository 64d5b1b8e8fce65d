"""From one expression to the lines of a method: pieces that occur twice, or had a name before, become variables."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, TypeVar

Tree = TypeVar("Tree", bound=ast.AST)
#: What each method is given, in the order in which it is written.
_PARAMETERS = {
    "summarize": ("k", "v", "ctx"),
    "pool": ("q", "ctx"),
    "score": ("q", "s", "m", "ctx"),
    "select": ("score", "m", "ctx"),
    "attend": ("q", "s", "score", "pages", "m", "ctx"),
    "remember": ("q", "s", "score", "pages", "m", "ctx"),
}
_TAKEN = {name for names in _PARAMETERS.values() for name in names}
#: Nodes that a piece has at least, for a variable to be shorter than the piece.
_LEAST = 4


def returned(items: Mapping[str, ast.expr]) -> ast.expr:
    """`dict(name=value, ...)`"""
    return ast.Call(ast.Name("dict", ast.Load()), [], [ast.keyword(name, tree) for name, tree in items.items()])


def clone(tree: Tree) -> Tree:
    """A copy of a syntax tree that shares nothing with it; several times as fast as `copy.deepcopy`."""
    return type(tree)(**{name: _cloned(value) for name, value in ast.iter_fields(tree)})


def _cloned(value: Any) -> Any:
    if isinstance(value, ast.AST):
        return clone(value)
    return [_cloned(item) for item in value] if isinstance(value, list) else value


def method(name: str, body: ast.expr, named: Mapping[str, str], taken: set[str]) -> list[str]:
    """The indented lines of a method that returns `body`. It takes the parameters that the body names.

    `named`: variables by the dump of what they stood for; `taken`: names that mean something else.
    """
    tree = clone(body)
    pieces = _Pieces(tree, named, taken)
    tree = pieces.visit(tree)
    used = {node.id for node in ast.walk(body) if isinstance(node, ast.Name)}
    parameters = ", ".join(word for word in _PARAMETERS[name] if word in used)
    lines = [f"{variable} = {ast.unparse(piece)}" for variable, piece in pieces.made.items()]
    return [f"    def {name}({parameters}):", *(f"        {line}" for line in [*lines, f"return {ast.unparse(tree)}"])]


class _Pieces(ast.NodeTransformer):
    """Replaces shared pieces by variables, the innermost ones first; `made` has them in the order of their use."""

    def __init__(self, body: ast.expr, named: Mapping[str, str], taken: set[str]):
        self.made: dict[str, ast.expr] = {}
        self._body, self._named = body, named
        self._variables: dict[str, str] = {}
        names = {node.id for node in ast.walk(body) if isinstance(node, ast.Name)}
        self._taken = taken | names | _TAKEN | set(_axes_made(body))
        self._count: Counter[str] = Counter()
        self._keys: dict[int, str] = {}  # dumps by the identity of a node, all of which live in the body
        self._tally(body)

    def _tally(self, node: ast.AST) -> None:
        """Counts how often each piece is used; what is inside a piece is used once for all of them."""
        if _is_piece(node):
            key = self._keys[id(node)] = ast.dump(node)
            self._count[key] += 1
            if self._count[key] > 1:
                return
        for child in ast.iter_child_nodes(node):
            self._tally(child)

    def visit(self, node: ast.AST) -> Any:
        if node is self._body or not _is_piece(node):
            return self.generic_visit(node)
        key = self._keys.get(id(node)) or ast.dump(node)
        if key not in self._named and not (self._count[key] > 1 and _is_large(node)):
            return self.generic_visit(node)
        if key not in self._variables:
            piece: Any = self.generic_visit(node)
            variable = self._fresh(self._named.get(key, ""))
            self._variables[key], self.made[variable] = variable, piece
        return ast.Name(self._variables[key], ast.Load())

    def _fresh(self, wanted: str) -> str:
        root = wanted or "x"
        numbered = (f"{root}{i}" for i in range(1 if not wanted else 2, 1000))
        found = next(word for word in chain([wanted] if wanted else [], numbered) if word not in self._taken)
        self._taken.add(found)
        return found


def _axes_made(body: ast.expr) -> Iterator[str]:
    """The axes that `split` and `window` make are named by keywords."""
    for node in ast.walk(body):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("split", "window"):
            yield from (word.arg for word in node.keywords if word.arg)


def _is_large(node: ast.AST) -> bool:
    return sum(1 for _ in ast.walk(node)) >= _LEAST


def _is_piece(node: ast.AST) -> bool:
    """Whether a variable may stand for it: not for numbers written out, names, and members."""
    if isinstance(node, ast.UnaryOp):
        return not isinstance(node.operand, ast.Constant)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return False
    return isinstance(node, (ast.Call, ast.BinOp, ast.BoolOp, ast.Compare))
