"""Evaluates expressions over a whitelist of constructs; anything else is a finding with a hint."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from vortexlab.dsl.calls import call_function
from vortexlab.dsl.declarations import check_number
from vortexlab.dsl.graph import RESERVED_AXES, Value
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
    did_you_mean,
    foreign_hint,
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
_DECLARED = {"knob": "budget = knob.int(1, 64, default=4)", "memory": "mass = memory.step(page)"}


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
                hint=f"positions along it are {'' if item.name in RESERVED_AXES else 'x.'}index({item.name}); "
                f"a reduction over it is x.max({item.name})",
            )
        if isinstance(item, Record):
            if item.members is None:
                raise Poisoned
            members = " or ".join(f"{item.what}.{name}" for name in list(item.members)[:4]) or f"{item.what}.name"
            raise place.error(
                "record-as-value",
                f"{item.what} is not a value by itself",
                expected="one of its members",
                hint=f"write {members}",
                found=item.what,
            )
        found = item.value if isinstance(item.value, str) else f"knob {item.value.name}"
        raise place.error(
            "text-as-value",
            "text is not a value",
            found=found[:40],
            expected="a number or a set",
            hint=_hint_about_text(item),
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
            hint="leave the argument out" if value is None else "write a number, True or False",
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
            if name in ("k", "v"):
                hint += f"; make a summary of it there, and read it as s.{name}_mean or the like"
            if self.method == "select" and name in ("q", "s"):
                hint += "; let score return what select needs: dict(a=..., b=...)"
        elif name in MODULES:
            hint = "there are no modules: write dot(a, b, axis), exp(x), x.max(axis), topk(score, n), ..."
        elif name in FUNCTIONS:
            hint = f"{name} is a function: write {name}(...)"
        elif name in ("knob", "memory"):
            hint = f"a {name} is declared in the class body: {_DECLARED[name]}"
        else:
            values = ", ".join(sorted(item for item in self._scope if len(item) < 24)[:12]) or "none"
            hint = did_you_mean(name, [*self._scope, *FUNCTIONS, *self.axes]) or (
                f"declare it in the class body, for example {name[:20]} = 64; values here: {values}"
            )
        raise place.error(
            "unknown-name", f"unknown name {name}", found=name, hint=hint, expected="a name that is known here"
        )

    def _attribute(self, node: ast.Attribute, place: Place) -> Item:
        self._not_foreign(node)
        owner = self.item(node.value)
        if not isinstance(owner, Record):
            hint = f"write x.{node.attr}(axis)" if node.attr in METHODS else method_hint(node.attr)
            is_score = isinstance(node.value, ast.Name) and node.value.id == "score"
            if is_score and node.attr not in METHODS and not node.attr.startswith("_"):
                hint = f"score is one value here: write score, or let the method return dict({node.attr}=...)"
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
                hint=_hint_about_member(owner.what, node.attr, owner.members),
                expected="one of its members",
            )
        self.used.add(f"{owner.what}.{node.attr}")
        return owner.members[node.attr](place)

    def _not_foreign(self, node: ast.Attribute) -> None:
        """Members of modules and of `self` get a hint about what stands behind the dot."""
        owner: ast.expr = node
        while isinstance(owner, ast.Attribute):
            owner = owner.value
        hint = foreign_hint(node)
        if hint and isinstance(owner, ast.Name) and not self.has(owner.id):
            raise place_of(owner).error(
                "unknown-name", f"unknown name {owner.id}", found=ast.unparse(node)[:40], hint=hint,
                expected="a name that is known here",
            )  # fmt: skip

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
            self._not_foreign(node.func)
            owner = self.item(node.func.value)
            method = node.func.attr
            if not isinstance(owner, Value):
                what = owner.what if isinstance(owner, Record) else type(owner).__name__.lower()
                raise place.error(
                    "not-callable",
                    f"{what} has nothing to call",
                    found=f".{method}()",
                    expected="a method of a value",
                    hint='text names a reduction or a precision: x.reduce("max", head), x.to("bf16")'
                    if isinstance(owner, Text)
                    else f"name a value first: {what}.name.{method}(...)"
                    if isinstance(owner, Record)
                    else f"reduce a value over it, for example x.max({owner.name})",
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
            if self.has(name) and self._scope[name] is None:
                raise Poisoned
            hint = f"{name} is a value, not a function" if self.has(name) else function_hint(name)
            raise place.error(
                "unknown-function",
                f"unknown function {name}",
                found=f"{name}()",
                hint=hint,
                expected="a function of the language",
            )
        return call_function(self, name, node, place)


def _hint_about_text(item: Text) -> str:
    if not isinstance(item.value, str):
        return "a choice of texts names a reduction: x.reduce(how, head); choices of numbers stand without quotes"
    text = item.value.strip().lower()
    if text.lstrip("+-") in ("inf", "infinity", "nan"):
        return "there are no infinities: write a number such as -1e30, or choose among= the other pages"
    if text.replace(".", "", 1).lstrip("-").isdecimal():
        return "write the number without quotes"
    return 'text names a reduction or a precision: x.reduce("max", head), x.to("bf16")'


def _hint_about_member(what: str, name: str, members: Mapping[str, object]) -> str:
    if what == "m" and not members:
        return f"declare it in the class body: {name} = memory.step(page)"
    if what == "s" and not members:
        return f"make it in summarize: def summarize(k): return dict({name}=k.mean(token))"
    return suggestion(name, members)
