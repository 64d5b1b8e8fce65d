"""The whitelist evaluator: turns the body of one method into nodes.

It walks the syntax tree and knows a fixed list of constructs. Anything else is a finding with a hint; nothing is
handed to Python to run.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping

from vortexlab.dsl.expressions import Expressions
from vortexlab.dsl.graph import Value
from vortexlab.dsl.ir import Knob
from vortexlab.dsl.items import Deferred, Item, Poisoned, Returned, Text
from vortexlab.dsl.outline import check_name, is_docstring
from vortexlab.dsl.places import MAX_FINDINGS, Place, place_of
from vortexlab.dsl.rules import Graph
from vortexlab.dsl.words import METHOD_PARAMETERS, refused


class Tracer(Expressions):
    """Evaluates one method, statement by statement.

    `assigned` are its variables, with the place of the first value; `returned` are the names of the mapping that it
    returns, with the places of their values.
    """

    def __init__(
        self,
        graph: Graph,
        scope: Mapping[str, Item | Deferred | None],
        axes: set[str],
        knobs: Mapping[str, Knob],
        method: str,
    ):
        super().__init__(graph, scope, axes, knobs, method)
        self.assigned: dict[str, Place] = {}
        self.returned: dict[str, Place] = {}
        self._fixed = frozenset(scope)

    def run(self, method: ast.FunctionDef) -> Returned | None:
        """The returned value or mapping, or None with `findings`. A faulty statement does not hide later ones."""
        for position, statement in enumerate(method.body):
            if is_docstring(statement, position):
                continue
            if isinstance(statement, ast.Return):
                if position != len(method.body) - 1:
                    after = method.body[position + 1]
                    self.findings.append(
                        place_of(after)
                        .error(
                            "dead-statement",
                            "nothing runs after return",
                            hint="return once, at the end",
                            found=ast.unparse(after)[:40],
                            expected="return as the last line",
                        )
                        .diagnostic
                    )
                return self._attempt(lambda node=statement: self._returned(node))  # type: ignore[misc]
            self._statement(statement)
            if len(self.findings) >= MAX_FINDINGS:
                return None
        self.findings.append(
            place_of(method)
            .error(
                "no-return",
                f"{method.name} returns nothing",
                expected="return value",
                hint="end it with return",
                found="no return",
            )
            .diagnostic
        )
        return None

    def _attempt(self, step: Callable[[], Returned]) -> Returned | None:
        try:
            return self.findings.guard(step)
        except Poisoned:
            return None

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name, value = node.targets[0].id, node.value
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            load = ast.copy_location(ast.Name(node.target.id, ast.Load()), node.target)
            name, value = node.target.id, ast.copy_location(ast.BinOp(load, node.op, node.value), node)
        else:
            self.findings.append(refused(node).diagnostic)
            return
        made = self._attempt(lambda: self._item_to_keep(value))
        if self.findings.guard(lambda: self._assignable(name, place_of(node))):
            assert not isinstance(made, dict)
            self._scope[name] = made
            self.assigned.setdefault(name, place_of(node))

    def _item_to_keep(self, node: ast.expr) -> Item:
        item = self.item(node)
        return item if isinstance(item, Text) else self.value(node)

    def _assignable(self, name: str, place: Place) -> bool:
        check_name(name, place)
        if name in self.axes:
            raise place.error(
                "name-taken",
                f"{name} names an axis",
                hint="choose another name",
                found=name,
                expected="a name of its own",
            )
        if name in self._fixed and name not in METHOD_PARAMETERS.get(self.method, ()):
            raise place.error(
                "name-taken",
                f"{name} is declared in the class",
                hint="choose another name",
                found=name,
                expected="a name of its own",
            )
        return True

    def _returned(self, node: ast.Return) -> Returned:
        if node.value is None:
            raise place_of(node).error(
                "no-return",
                "return gives nothing back",
                expected="return value",
                found="return",
                hint="return what the method makes",
            )
        pairs = self._mapping(node.value)
        if pairs is None:
            return self.value(node.value)
        made: dict[str, Value] = {}
        failed = False
        for key, value in pairs:
            self.returned[key] = place_of(value)
            item = self._attempt(lambda value=value: self.value(value))  # type: ignore[misc]
            failed = failed or item is None
            if isinstance(item, Value):
                made[key] = item
        if failed:
            raise Poisoned
        return made

    def _mapping(self, node: ast.expr) -> list[tuple[str, ast.expr]] | None:
        expected = "dict(lo=..., hi=...)"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            if node.args or any(k.arg is None for k in node.keywords):
                raise place_of(node).error(
                    "mapping",
                    "dict takes named values only",
                    expected=expected,
                    found=ast.unparse(node)[:40],
                    hint="name every value",
                )
            pairs = [(str(k.arg), k.value) for k in node.keywords]
        elif isinstance(node, ast.Dict):
            pairs = []
            for key, value in zip(node.keys, node.values, strict=True):
                if not isinstance(key, ast.Constant) or not isinstance(key.value, str) or not key.value.isidentifier():
                    raise place_of(key or node).error(
                        "mapping",
                        "the keys of a mapping are plain names",
                        expected=expected,
                        found=ast.unparse(key)[:40] if key else "**",
                        hint="name every value",
                    )
                pairs.append((key.value, value))
        else:
            return None
        names = [key for key, _ in pairs]
        twice = next((key for n, key in enumerate(names) if key in names[:n]), None)
        if twice is not None and self.method == "remember":
            raise place_of(pairs[names.index(twice, names.index(twice) + 1)][1]).error(
                "memory-written-twice",
                f"remember writes {twice} twice",
                found=f"{twice}=",
                expected="each memory once",
                hint="keep one of them; m still holds the earlier step's value while remember runs",
            )
        if not names or len(set(names)) != len(names) or not all(n.isascii() and not n.startswith("__") for n in names):
            raise place_of(node).error(
                "mapping",
                "a mapping has one or more names, each once",
                found=", ".join(names) or "none",
                expected=expected,
                hint="return dict(a=..., b=...)",
            )
        return pairs
