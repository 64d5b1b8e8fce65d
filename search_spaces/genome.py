"""A program taken apart for mutation: knobs, summaries, score and selection as syntax trees.

The text is only ever parsed, never run. A genome keeps one expression per part: local variables of a method are
written out where they are used, and the compiler finds the shared pieces again.
"""

from __future__ import annotations

import ast
import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

from vortexlab.dsl import parse
from vortexlab.dsl.errors import VortexError
from vortexlab.search_spaces.knobs import SHARED

_NAME_LIMIT = 24


@dataclass(frozen=True)
class Genome:
    """The parts of one program.

    `options` are the decorator's keywords, `names` the constants and knobs of the class body, `fields` the summaries,
    `scores` the named scores ({"score": ...} when there is one), `select` the selection.
    """

    name: str
    options: dict[str, ast.expr]
    names: dict[str, ast.expr]
    fields: dict[str, ast.expr]
    scores: dict[str, ast.expr]
    select: ast.expr
    doc: str = ""

    @staticmethod
    def of(source: str) -> Genome:
        """Takes a valid program apart. Raises `ProgramError` when the text is no program."""
        parse(source)
        tree = ast.parse(source)
        body = next(item for item in tree.body if isinstance(item, ast.ClassDef))
        decorator = body.decorator_list[0]
        options = {k.arg: k.value for k in decorator.keywords if k.arg} if isinstance(decorator, ast.Call) else {}
        names: dict[str, ast.expr] = {}
        methods: dict[str, ast.expr] = {}
        for item in body.body:
            if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
                names[item.targets[0].id] = item.value
            elif isinstance(item, ast.FunctionDef):
                methods[item.name] = _inline(item)
        return Genome(
            name=body.name,
            options=options,
            names=names,
            fields=_mapping(methods.get("summarize")) or {},
            scores=_scores(methods.get("score")),
            select=methods["select"],
            doc=ast.get_docstring(body) or "",
        )

    def render(self, doc: str, name: str | None = None) -> str:
        """The program's text under a new docstring. Knobs, constants and summaries that nothing uses are left out."""
        lean = self._pruned()
        root = (name or self.name).split("_")[0][:_NAME_LIMIT]
        lines = []
        for key, value in lean.names.items():
            lines.append(f"    {key} = {ast.unparse(value)}")
        if lean.names:
            lines.append("")
        if lean.fields:
            items = ", ".join(f"{key}={ast.unparse(value)}" for key, value in lean.fields.items())
            lines += ["    def summarize(k, v, ctx):", f"        return dict({items})", ""]
        if lean.scores:
            body = (
                ast.unparse(lean.scores["score"])
                if set(lean.scores) == {"score"}
                else "dict(" + ", ".join(f"{key}={ast.unparse(value)}" for key, value in lean.scores.items()) + ")"
            )
            lines += ["    def score(q, s, ctx):", f"        return {body}", ""]
        parameters = "score, ctx" if lean.scores else "ctx"
        lines += [f"    def select({parameters}):", f"        return {ast.unparse(lean.select)}"]
        text = "\n".join(lines)
        options = ", ".join(f"{key}={ast.unparse(value)}" for key, value in lean.options.items())
        mark = hashlib.sha256((options + text).encode()).hexdigest()[:6]
        quoted = doc.replace("\\", "/").replace('"""', "'''").strip() or "A program of the search."
        head = f'from vortexlab.dsl import *\n\n\n@program({options})\nclass {root}_{mark}:\n    """{quoted}"""\n\n'
        return head + text + "\n"

    def _pruned(self) -> Genome:
        genome = self
        if set(genome.scores) != {"score"}:
            used = members(genome.select, "score")
            genome = replace(genome, scores={k: v for k, v in genome.scores.items() if k in used})
        elif not any(isinstance(node, ast.Name) and node.id == "score" for node in ast.walk(genome.select)):
            genome = replace(genome, scores={})
        read = {name for tree in genome.scores.values() for name in members(tree, "s")}
        genome = replace(genome, fields={k: v for k, v in genome.fields.items() if k in read})
        trees = (*genome.options.values(), *genome.fields.values(), *genome.scores.values(), genome.select)
        mentioned = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
        return replace(genome, names={k: v for k, v in genome.names.items() if k in mentioned})

    def parts(self) -> Iterator[tuple[str, str, ast.expr]]:
        """Every expression with its place: ("fields", name), ("scores", name) or ("select", "")."""
        for key, value in self.fields.items():
            yield "fields", key, value
        for key, value in self.scores.items():
            yield "scores", key, value
        yield "select", "", self.select

    def with_part(self, place: str, key: str, tree: ast.expr) -> Genome:
        if place == "select":
            return replace(self, select=tree)
        if place == "fields":
            return replace(self, fields={**self.fields, key: tree})
        return replace(self, scores={**self.scores, key: tree})

    def with_knob(self, name: str) -> Genome:
        """Declares the shared knob of that name, unless the program has a knob or constant of that name already."""
        if name in self.names:
            return self
        return replace(self, names={**self.names, name: expression(SHARED[name].declaration)})


@dataclass
class _Substitute(ast.NodeTransformer):
    values: dict[str, ast.expr] = field(default_factory=dict)

    def visit_Name(self, node: ast.Name) -> ast.expr:  # the name is ast's
        return copy.deepcopy(self.values[node.id]) if node.id in self.values else node


def _inline(method: ast.FunctionDef) -> ast.expr:
    """The returned expression with every local variable written out."""
    values: dict[str, ast.expr] = {}
    for statement in method.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            values[statement.targets[0].id] = _Substitute(values).visit(copy.deepcopy(statement.value))
        elif isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
            left = copy.deepcopy(values[statement.target.id])
            right = _Substitute(values).visit(copy.deepcopy(statement.value))
            values[statement.target.id] = ast.BinOp(left, statement.op, right)
        elif isinstance(statement, ast.Return) and statement.value is not None:
            return _Substitute(values).visit(copy.deepcopy(statement.value))
    raise VortexError(f"method {method.name} returns nothing")


def _mapping(tree: ast.expr | None) -> dict[str, ast.expr] | None:
    """The items of `dict(a=...)` or `{"a": ...}`; None for any other expression."""
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "dict":
        return {item.arg: item.value for item in tree.keywords if item.arg}
    if isinstance(tree, ast.Dict):
        return {str(key.value): value for key, value in zip(tree.keys, tree.values, strict=True)
                if isinstance(key, ast.Constant)}  # fmt: skip
    return None


def _scores(tree: ast.expr | None) -> dict[str, ast.expr]:
    if tree is None:
        return {}
    return _mapping(tree) or {"score": tree}


def expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def fill(template: str, **holes: ast.expr) -> ast.expr:
    """The template's expression with its names replaced: ``fill("a + b", a=tree, b=tree)``."""
    return _Substitute(holes).visit(expression(template))


def is_attribute(node: ast.AST, owner: str) -> TypeGuard[ast.Attribute]:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == owner


def members(tree: ast.expr, owner: str) -> set[str]:
    """The names that follow `owner.` in the expression."""
    return {node.attr for node in ast.walk(tree) if is_attribute(node, owner)}


def sites(tree: ast.expr, wanted: type[ast.AST] | tuple[type[ast.AST], ...]) -> list[ast.AST]:
    return [node for node in ast.walk(tree) if isinstance(node, wanted)]


class _Swap(ast.NodeTransformer):
    def __init__(self, target: ast.AST, new: ast.expr):
        self.target, self.new = target, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.target else self.generic_visit(node)


def swapped(tree: ast.expr, target: ast.AST, new: ast.expr) -> ast.expr:
    """A copy of `tree` with the subtree `target` (by identity) replaced."""
    memo: dict[int, Any] = {}
    clone = copy.deepcopy(tree, memo)
    made: ast.expr = _Swap(memo[id(target)], copy.deepcopy(new)).visit(clone)
    return made
