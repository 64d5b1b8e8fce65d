"""A program taken apart for mutation: knobs, summaries, scores, selection and what is remembered as syntax trees.

The text is only ever parsed, never run. A genome keeps one expression per part: local variables of a method are
written out where they are used, and `vortexlab.search_spaces.layout` finds the shared pieces again.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

from vortexlab.dsl.errors import VortexError
from vortexlab.search_spaces.knobs import SHARED
from vortexlab.search_spaces.layout import clone, method, returned
from vortexlab.search_spaces.parsed import parsed

_NAME_LIMIT = 24
#: Nodes of a method's expression with its variables written out; a chain of variables that double grows without end.
_MAX_NODES = 20_000


@dataclass(frozen=True)
class Genome:
    """The parts of one program.

    `options` are the decorator's keywords, `names` the constants, knobs, parameters and memories of the class body,
    `fields` the summaries, `scores` the named scores ({"score": ...} when there is one), `select` the selection,
    `remember` what is written to each memory, and `pool` and `attend` the methods of these names, which operators leave
    as they are. `locals` are names that expressions (by their dump) had in the text.
    """

    name: str
    options: dict[str, ast.expr]
    names: dict[str, ast.expr]
    fields: dict[str, ast.expr]
    scores: dict[str, ast.expr]
    select: ast.expr
    doc: str = ""
    remember: dict[str, ast.expr] = field(default_factory=dict)
    pool: ast.expr | None = None
    attend: ast.expr | None = None
    locals: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(source: str) -> Genome:
        """Takes a valid program apart.

        Raises `ProgramError` when the text is no program, `VortexError` when its expressions, written out, are too
        large.
        """
        parsed(source)
        tree = ast.parse(source)
        body = next(item for item in tree.body if isinstance(item, ast.ClassDef))
        decorator = body.decorator_list[0]
        options = {k.arg: k.value for k in decorator.keywords if k.arg} if isinstance(decorator, ast.Call) else {}
        names: dict[str, ast.expr] = {}
        methods: dict[str, ast.expr] = {}
        variables: dict[str, str] = {}
        for item in body.body:
            if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
                names[item.targets[0].id] = item.value
            elif isinstance(item, ast.FunctionDef):
                methods[item.name] = _inline(item, variables)
        return Genome(
            name=body.name,
            options=options,
            names=names,
            fields=_mapping(methods.get("summarize")) or {},
            scores=_scores(methods.get("score")),
            select=methods["select"],
            doc=ast.get_docstring(body) or "",
            remember=_mapping(methods.get("remember")) or {},
            pool=methods.get("pool"),
            attend=methods.get("attend"),
            locals=variables,
        )

    def render(self, doc: str, name: str | None = None) -> str:
        """The program's text under a new docstring. What nothing uses is left out: knobs, constants, summaries, ..."""
        lean = self.pruned()
        root = (name or self.name).split("_")[0][:_NAME_LIMIT]
        # A memory's period may be a knob, which stands before it.
        declared = sorted(lean.names.items(), key=lambda item: is_declaration(item[1]))
        lines = [f"    {key} = {ast.unparse(value)}" for key, value in declared]
        if lean.names:
            lines.append("")
        bodies = {
            "summarize": returned(lean.fields) if lean.fields else None,
            "pool": lean.pool,
            "score": lean.scores.get("score") if set(lean.scores) == {"score"} else returned(lean.scores),
            "select": lean.select,
            "attend": lean.attend,
            "remember": returned(lean.remember) if lean.remember else None,
        }
        for key, body in bodies.items():
            if body is not None and not (key == "score" and not lean.scores):
                lines += [*method(key, body, lean.locals, set(lean.names)), ""]
        text = "\n".join(lines[:-1])
        options = ", ".join(f"{key}={ast.unparse(value)}" for key, value in lean.options.items())
        mark = hashlib.sha256((options + text).encode()).hexdigest()[:6]
        quoted = doc.replace("\\", "/").replace('"""', "'''").strip() or "A program of the search."
        head = f'from vortexlab.dsl import *\n\n\n@program({options})\nclass {root}_{mark}:\n    """{quoted}"""\n\n'
        return head + text + "\n"

    def pruned(self) -> Genome:
        """Without the scores, memories, summaries and names that neither selection nor output depends on."""
        single = set(self.scores) == {"score"}
        scores: set[str] = set()
        memories: set[str] = set()
        while True:
            trees = [tree for tree in (self.select, self.attend) if tree is not None]
            trees += [self.scores[key] for key in scores] + [self.remember[key] for key in memories]
            if single:
                read = {"score"} if any(mentions(tree, "score") for tree in trees) else set()
            else:
                read = {name for tree in trees for name in members(tree, "score")} & set(self.scores)
            kept = {name for tree in trees for name in members(tree, "m")} & set(self.remember)
            if read <= scores and kept <= memories:
                break
            scores, memories = scores | read, memories | kept
        summaries = {name for tree in trees for name in members(tree, "s")}
        genome = replace(
            self,
            fields={key: tree for key, tree in self.fields.items() if key in summaries},
            scores={key: tree for key, tree in self.scores.items() if key in scores},
            remember={key: tree for key, tree in self.remember.items() if key in memories},
        )
        trees += [*genome.options.values(), *genome.fields.values(), *([self.pool] if self.pool else [])]
        trees += [self.names[key] for key in memories]
        mentioned = memories | {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
        return replace(genome, names={key: tree for key, tree in self.names.items() if key in mentioned})

    def parts(self) -> Iterator[tuple[str, str, ast.expr]]:
        """Every expression that operators may change, with its place: ("fields" or "scores", name), ("select", "")."""
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
        return clone(self.values[node.id]) if node.id in self.values else node


def _inline(method: ast.FunctionDef, variables: dict[str, str]) -> ast.expr:
    """The returned expression with every local variable written out; adds the dumps of these to `variables`."""
    values: dict[str, ast.expr] = {}
    sizes: dict[str, int] = {}

    def written_out(tree: ast.expr) -> ast.expr:
        size = _nodes(tree, sizes)
        if size > _MAX_NODES:
            raise VortexError(f"method {method.name} is too large to take apart: {size} nodes, at most {_MAX_NODES}")
        made: ast.expr = _Substitute(values).visit(clone(tree))
        return made

    for statement in method.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name, tree = statement.targets[0].id, statement.value
        elif isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
            name = statement.target.id
            tree = ast.BinOp(ast.Name(name, ast.Load()), statement.op, statement.value)
        elif isinstance(statement, ast.Return) and statement.value is not None:
            return written_out(statement.value)
        else:
            continue
        values[name], sizes[name] = written_out(tree), _nodes(tree, sizes)
        variables.setdefault(ast.dump(values[name]), name)
    raise VortexError(f"method {method.name} returns nothing")


def _nodes(tree: ast.expr, sizes: Mapping[str, int]) -> int:
    """Nodes of an expression whose variables stand for expressions of these sizes."""
    return sum(sizes.get(node.id, 1) if isinstance(node, ast.Name) else 1 for node in ast.walk(tree))


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


def is_declaration(tree: ast.expr, *kinds: str) -> bool:
    """Whether a name of the class body declares a parameter or a memory (of `kinds`, by default either)."""
    if not isinstance(tree, ast.Call):
        return False
    owner = tree.func.value if isinstance(tree.func, ast.Attribute) else tree.func
    return isinstance(owner, ast.Name) and owner.id in (kinds or ("param", "memory"))


def mentions(tree: ast.expr, name: str) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(tree))


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


def swapped(tree: ast.expr, target: ast.AST, new: ast.expr) -> ast.expr:
    """A copy of `tree` with the subtree `target` (by identity) replaced."""
    return swapped_all(tree, {id(target): new})


def swapped_all(tree: ast.expr, news: Mapping[int, ast.expr]) -> ast.expr:
    """A copy of `tree` with several subtrees replaced; `news` by their identity."""

    def copied(value: Any) -> Any:
        if isinstance(value, list):
            return [copied(item) for item in value]
        if not isinstance(value, ast.AST):
            return value
        if id(value) in news:
            return clone(news[id(value)])
        return type(value)(**{name: copied(held) for name, held in ast.iter_fields(value)})

    made: ast.expr = copied(tree)
    return made
