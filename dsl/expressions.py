"""Evaluates expressions over a whitelist of constructs; anything else is a finding with a hint."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from vortexlab.dsl.calls import call_function
from vortexlab.dsl.declarations import check_number
from vortexlab.dsl.graph import Value
from vortexlab.dsl.ir import SET, Knob, Type
from vortexlab.dsl.items import Axis, Deferred, Item, Poisoned, Record, Text
from vortexlab.dsl.methods import call_method
from vortexlab.dsl.places import Findings, Place, place_of
from vortexlab.dsl.rules import Graph
from vortexlab.dsl.words import (
    FUNCTIONS,
    METHOD_PARAMETERS,
    METHODS,
    MODULES,
    PARAMETERS,
    function_hint,
    method_hint,
    owners,
    refused,
    suggestion,
)

_BINARY: dict[type[ast.operator], str] = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.FloorDiv: "floordiv", ast.Mod: "mod",
    ast.BitOr: "or", ast.BitAnd: "and",
}  # fmt: skip
_COMPARE: dict[type[ast.cmpop], tuple[str, bool]] = {
    ast.Lt: ("lt", False), ast.LtE: ("le", False), ast.Gt: ("lt", True), ast.GtE: ("le", True),
    ast.Eq: ("eq", False), ast.NotEq: ("ne", False),
}  # fmt: skip


class Expressions:
    """Turns the expressions of one method, or of a class constant, into nodes.

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
        self._scope: dict[str, Item | Deferred | None] = dict(scope)
        self.method = method

    def has(self, name: str) -> bool:
        return name in self._scope

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
                found=item.what,
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
            "not-in-language",
            "this has no meaning in a program",
            found=repr(value)[:40],
            expected="a number",
            hint="write a number, True or False",
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
        if name == "m" and self.method in ("summarize", "pool"):
            raise place.error(
                "memory-in-summary",
                f"{self.method} may not read what a request remembers",
                found="m",
                expected=", ".join(METHOD_PARAMETERS[self.method]),
                hint=f"m is given to {owners('m')}; there it meets summaries and the pooled query",
            )
        if name in METHOD_PARAMETERS.get(self.method, ()):
            hint = f"add it to the parameters: def {self.method}({', '.join(METHOD_PARAMETERS[self.method])})"
        elif name in PARAMETERS and self.method:
            hint = f"{name} is given to {owners(name)} only"
            if self.method == "select" and name in ("q", "s"):
                hint += "; let score return what select needs: dict(a=..., b=...)"
        elif name in MODULES:
            hint = "there are no modules: write dot(a, b, axis), exp(x), x.max(axis), topk(score, n), ..."
        elif name in FUNCTIONS:
            hint = f"{name} is a function: write {name}(...)"
        else:
            hint = suggestion(name, [*self._scope, *FUNCTIONS, *self.axes])
        raise place.error(
            "unknown-name", f"unknown name {name}", found=name, hint=hint, expected="a name that is known here"
        )

    def _attribute(self, node: ast.Attribute, place: Place) -> Item:
        owner = self.item(node.value)
        if not isinstance(owner, Record):
            hint = f"write x.{node.attr}(axis)" if node.attr in METHODS else method_hint(node.attr)
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
                hint=f"declare it in the class body: {node.attr} = memory.step(page)"
                if owner.what == "m" and not owner.members
                else suggestion(node.attr, owner.members),
                expected="one of its members",
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
        if isinstance(node.op, ast.Invert):
            self.graph.page_set(x, "what ~ is applied to", place)
            return self.graph.add("complement", x.type, (x,), place)
        return self.graph.unary({ast.USub: "neg", ast.UAdd: "pos"}.get(type(node.op), "not"), x, place)

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
                    "not-in-language",
                    "arguments are not unpacked",
                    found="*",
                    hint="name each argument",
                    expected="one value per argument",
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
                raise place.error(
                    "unknown-function",
                    f"a value has no method {method}",
                    found=f".{method}()",
                    hint=method_hint(method),
                    expected="a method of a value",
                )
            return call_method(self, owner, node, place)
        if not isinstance(node.func, ast.Name):
            raise refused(node.func)
        name = node.func.id
        if name not in FUNCTIONS:
            hint = f"{name} is a value, not a function" if self.has(name) else function_hint(name)
            raise place.error(
                "unknown-function",
                f"unknown function {name}",
                found=f"{name}()",
                hint=hint,
                expected="a function of the language",
            )
        return call_function(self, name, node, place)
