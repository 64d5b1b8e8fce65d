"""The whitelist evaluator: turns the body of one method into nodes.

It walks the syntax tree and knows a fixed list of constructs. Anything else is a finding with a hint; nothing is
handed to Python to run.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vortexlab.dsl.calls import call_function, call_method
from vortexlab.dsl.declarations import check_number
from vortexlab.dsl.graph import Graph, Place, Value, place_of
from vortexlab.dsl.ir import BOOL, FLOAT, INT, SET, Knob, KnobRef, Type
from vortexlab.dsl.outline import Findings, check_name, is_docstring
from vortexlab.dsl.words import FUNCTIONS, METHOD_PARAMETERS, METHODS, function_hint, refused, suggestion


class Poisoned(Exception):
    """An expression uses something whose own error is reported already."""


@dataclass(frozen=True)
class Axis:
    name: str


@dataclass(frozen=True)
class Text:
    """A text, or a choice knob of texts: allowed only where a reduction or a precision is named."""

    value: str | KnobRef


@dataclass(frozen=True)
class Record:
    """`s`, `score` or `ctx`: something with named members; None where its making failed."""

    what: str
    members: Mapping[str, Callable[[Place], Value]] | None


@dataclass(frozen=True)
class Deferred:
    """A name whose node is made when it is used: a knob, a constant, `k`, `v` or `q`."""

    make: Callable[[Place], Value | Text]


Item = Value | Axis | Text | Record
Returned = Item | dict[str, Value]

_BINARY: dict[type[ast.operator], str] = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.FloorDiv: "floordiv", ast.Mod: "mod",
    ast.BitOr: "or", ast.BitAnd: "and",
}  # fmt: skip
_COMPARE: dict[type[ast.cmpop], tuple[str, bool]] = {
    ast.Lt: ("lt", False), ast.LtE: ("le", False), ast.Gt: ("lt", True), ast.GtE: ("le", True),
    ast.Eq: ("eq", False), ast.NotEq: ("ne", False),
}  # fmt: skip


def knob_item(graph: Graph, knob: Knob, place: Place) -> Value | Text:
    """A knob where a value stands: a scalar, or a text when it chooses among texts."""
    if isinstance(knob.default, str):
        return Text(KnobRef(knob.name))
    kind = BOOL if knob.kind == "bool" else FLOAT if isinstance(knob.default, float) else INT
    return graph.add("knob", Type(kind), (), place, name=knob.name)


class Tracer:
    """Evaluates one method, or a class constant.

    `scope` holds the names that can be read; None stands for one whose making failed. `axes` are the names of axes,
    which a method extends by those it makes, so that `score` can name what `summarize` split.
    """

    def __init__(
        self,
        graph: Graph,
        scope: Mapping[str, Item | Deferred | None],
        axes: set[str],
        knobs: Mapping[str, Knob],
        method: str = "",
    ):
        self.graph = graph
        self.axes = axes
        self.knobs = knobs
        self.findings = Findings()
        self.used: set[str] = set()
        self.assigned: dict[str, Place] = {}
        self._scope: dict[str, Item | Deferred | None] = dict(scope)
        self._fixed = frozenset(scope)
        self._method = method

    def has(self, name: str) -> bool:
        return name in self._scope

    # ---- statements

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
                        .error("dead-statement", "nothing runs after return", hint="return once, at the end")
                        .diagnostic
                    )
                return self._attempt(lambda node=statement: self._returned(node))  # type: ignore[misc]
            self._statement(statement)
        self.findings.append(
            place_of(method)
            .error("no-return", f"{method.name} returns nothing", expected="return value", hint="end it with return")
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
            raise place.error("name-taken", f"{name} names an axis", hint="choose another name")
        if name in self._fixed and name not in METHOD_PARAMETERS.get(self._method, ()):
            raise place.error("name-taken", f"{name} is declared in the class", hint="choose another name")
        return True

    def _returned(self, node: ast.Return) -> Returned:
        if node.value is None:
            raise place_of(node).error("no-return", "return gives nothing back", expected="return value")
        pairs = self._mapping(node.value)
        if pairs is None:
            return self.value(node.value)
        made: dict[str, Value] = {}
        failed = False
        for key, value in pairs:
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
                raise place_of(node).error("mapping", "dict takes named values only", expected=expected)
            pairs = [(str(k.arg), k.value) for k in node.keywords]
        elif isinstance(node, ast.Dict):
            pairs = []
            for key, value in zip(node.keys, node.values, strict=True):
                if not isinstance(key, ast.Constant) or not isinstance(key.value, str) or not key.value.isidentifier():
                    raise place_of(key or node).error(
                        "mapping", "the keys of a mapping are plain names", expected=expected
                    )
                pairs.append((key.value, value))
        else:
            return None
        names = [key for key, _ in pairs]
        if not names or len(set(names)) != len(names) or not all(n.isascii() and not n.startswith("__") for n in names):
            raise place_of(node).error(
                "mapping",
                "a mapping has one or more names, each once",
                found=", ".join(names) or "none",
                expected=expected,
            )
        return pairs

    # ---- expressions

    def value(self, node: ast.expr) -> Value:
        item = self.item(node)
        if isinstance(item, Value):
            return item
        place = place_of(node)
        if isinstance(item, Axis):
            raise place.error(
                "axis-as-value",
                f"{item.name} is the name of an axis, not a value",
                found=item.name,
                expected="a value",
                hint=f"reduce over it: x.max({item.name})",
            )
        if isinstance(item, Record):
            if item.members is None:
                raise Poisoned
            first = next(iter(item.members), "name")
            raise place.error(
                "record-as-value",
                f"{item.what} is not a value by itself",
                expected="one of its members",
                hint=f"write {item.what}.{first}",
            )
        found = item.value if isinstance(item.value, str) else f"knob {item.value.name}"
        raise place.error(
            "text-as-value",
            "text is not a value",
            found=found[:40],
            expected="a number or a set",
            hint='text names a reduction or a precision: x.reduce("max", head), x.to("bf16")',
        )

    def item(self, node: ast.expr) -> Item:
        place = place_of(node)
        if isinstance(node, ast.Constant):
            return self._constant(node, place)
        if isinstance(node, ast.Name):
            return self._name(node.id, place)
        if isinstance(node, ast.Attribute):
            return self._attribute(node, place)
        if isinstance(node, ast.BinOp):
            return self._binary(node, place)
        if isinstance(node, ast.UnaryOp):
            return self._unary(node, place)
        if isinstance(node, ast.Compare):
            return self._comparison(node, place)
        if isinstance(node, ast.BoolOp):
            op = "and" if isinstance(node.op, ast.And) else "or"
            made, *others = [self.value(value) for value in node.values]
            for other in others:
                made = self.graph.logic(op, made, other, place)
            return made
        if isinstance(node, ast.Call):
            return self._call(node, place)
        raise refused(node)

    def _constant(self, node: ast.Constant, place: Place) -> Item:
        value = node.value
        if isinstance(value, str):
            return Text(value)
        if isinstance(value, bool):
            return self.graph.const(value, place)
        if isinstance(value, (int, float)):
            return self.graph.const(check_number(value, place), place)
        raise place.error(
            "not-in-language", "this has no meaning in a program", found=repr(value)[:40], expected="a number"
        )

    def _name(self, name: str, place: Place) -> Item:
        if name in self._scope:
            self.used.add(name)
            held = self._scope[name]
            if held is None:
                raise Poisoned
            return held.make(place) if isinstance(held, Deferred) else held
        if name in self.axes:
            return Axis(name)
        if name == "everything":
            return self.graph.add("everything", Type(SET), (), place)
        owners = [method for method, names in METHOD_PARAMETERS.items() if name in names]
        if self._method in owners:
            hint = f"add it to the parameters: def {self._method}({', '.join(METHOD_PARAMETERS[self._method])})"
        elif owners and self._method:
            hint = f"{name} is given to {' and '.join(owners)} only"
        elif name in FUNCTIONS:
            hint = f"{name} is a function: write {name}(...)"
        else:
            hint = suggestion(name, [*self._scope, *FUNCTIONS, *self.axes])
        raise place.error("unknown-name", f"unknown name {name}", found=name, hint=hint)

    def _attribute(self, node: ast.Attribute, place: Place) -> Item:
        owner = self.item(node.value)
        if not isinstance(owner, Record):
            hint = f"write x.{node.attr}(axis)" if node.attr in METHODS else suggestion(node.attr, METHODS)
            raise place.error(
                "unknown-attribute",
                f"there is no attribute {node.attr} here",
                found=f".{node.attr}",
                expected="a method call",
                hint=hint,
            )
        if owner.members is None:
            raise Poisoned
        if node.attr not in owner.members:
            raise place.error(
                "unknown-member",
                f"{owner.what} has no {node.attr}",
                found=f"{owner.what}.{node.attr}",
                hint=suggestion(node.attr, owner.members),
            )
        self.used.add(f"{owner.what}.{node.attr}")
        return owner.members[node.attr](place)

    def _binary(self, node: ast.BinOp, place: Place) -> Value:
        if type(node.op) not in _BINARY:
            raise refused(node.op, node)
        a, b = self.value(node.left), self.value(node.right)
        name = _BINARY[type(node.op)]
        if name in ("or", "and") and not a.type.kind == b.type.kind == SET:
            raise place.error(
                "set-and-number",
                "| and & combine sets of pages",
                found=f"{a} and {b}",
                expected="two sets",
                hint="between truth values write `or` and `and`; sets are made by topk, first, last, ...",
            )
        return self.graph.binary(name, a, b, place)

    def _unary(self, node: ast.UnaryOp, place: Place) -> Value:
        if isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            number = node.operand.value
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                return self.graph.const(check_number(-number, place), place)
        x = self.value(node.operand)
        if isinstance(node.op, ast.UAdd):
            return self.graph.number(x, "what + is applied to", place)
        if isinstance(node.op, ast.Invert):
            self.graph.page_set(x, "what ~ is applied to", place)
            return self.graph.add("complement", x.type, (x,), place)
        return self.graph.unary("neg" if isinstance(node.op, ast.USub) else "not", x, place)

    def _comparison(self, node: ast.Compare, place: Place) -> Value:
        if len(node.ops) != 1:
            raise place.error(
                "chained-comparison",
                "comparisons do not chain",
                found=ast.unparse(node)[:40],
                expected="one comparison",
                hint="write a < b and b < c",
            )
        if type(node.ops[0]) not in _COMPARE:
            raise refused(node.ops[0], node)
        op, is_swapped = _COMPARE[type(node.ops[0])]
        a, b = self.value(node.left), self.value(node.comparators[0])
        return self.graph.compare(op, b, a, place) if is_swapped else self.graph.compare(op, a, b, place)

    def _call(self, node: ast.Call, place: Place) -> Value:
        for argument in [*node.args, *(k.value for k in node.keywords if k.arg is None)]:
            if isinstance(argument, ast.Starred) or argument not in node.args:
                raise place_of(argument).error(
                    "not-in-language", "arguments are not unpacked", found="*", hint="name each argument"
                )
        if isinstance(node.func, ast.Attribute):
            owner = self.item(node.func.value)
            method = node.func.attr
            if not isinstance(owner, Value):
                what = owner.what if isinstance(owner, Record) else type(owner).__name__.lower()
                raise place.error(
                    "not-callable",
                    f"{what} has nothing to call",
                    found=f".{method}()",
                    expected="a method of a value",
                    hint=f"values have the methods {', '.join(METHODS)}",
                )
            if method not in METHODS:
                hint = f"write {method}(x)" if method in FUNCTIONS else suggestion(method, METHODS)
                raise place.error(
                    "unknown-function", f"a value has no method {method}", found=f".{method}()", hint=hint
                )
            return call_method(self, owner, node, place)
        if not isinstance(node.func, ast.Name):
            raise refused(node.func)
        name = node.func.id
        if name not in FUNCTIONS:
            hint = f"{name} is a value, not a function" if self.has(name) else function_hint(name)
            raise place.error("unknown-function", f"unknown function {name}", found=f"{name}()", hint=hint)
        return call_function(self, name, node, place)
