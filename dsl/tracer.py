"""The whitelist evaluator: turns the body of one method into nodes.

It walks the syntax tree and knows a fixed list of constructs. Anything else is a finding with a hint; nothing is
handed to Python to run.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vortexlab.dsl.graph import RESERVED_AXES, Finding, Graph, Place, Value
from vortexlab.dsl.ir import FLOAT, INT, REDUCTIONS, SET, Knob, KnobRef, Type


@dataclass(frozen=True)
class Axis:
    name: str


@dataclass(frozen=True)
class Text:
    """A string literal, or a choice knob of strings: allowed only as a named option."""

    value: str | KnobRef


@dataclass(frozen=True)
class Record:
    """`s`, `score` or `ctx`: something with named members."""

    what: str
    members: Mapping[str, Callable[[Place], Value]]


Item = Value | Axis | Text | Record

_BINARY: dict[type[ast.operator], str] = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.FloorDiv: "floordiv", ast.Mod: "mod",
    ast.BitOr: "or", ast.BitAnd: "and",
}  # fmt: skip
_COMPARE: dict[type[ast.cmpop], tuple[str, bool]] = {
    ast.Lt: ("lt", False), ast.LtE: ("le", False), ast.Gt: ("lt", True), ast.GtE: ("le", True),
    ast.Eq: ("eq", False), ast.NotEq: ("ne", False),
}  # fmt: skip
_UNARY_CALLS = ("abs", "exp", "log", "sqrt", "relu", "sigmoid", "silu", "tanh", "floor", "ceil", "float")
_BINARY_CALLS = {"maximum": "maximum", "minimum": "minimum", "max": "maximum", "min": "minimum"}
FUNCTIONS = (
    *_UNARY_CALLS, *_BINARY_CALLS, "where", "clamp", "dot", "softmax", "share", "everything", "first", "last", "stride",
    "random", "topk", "topp", "above", "dict",
)  # fmt: skip
METHODS = (*REDUCTIONS, "reduce", "split", "rename", "to")
_REFUSED = {
    "If": "write where(condition, a, b)", "IfExp": "write where(condition, a, b)", "For": "name the axis and reduce it",
    "While": "name the axis and reduce it", "Lambda": "write the expression where it is used",
    "ListComp": "name the axis and reduce it", "GeneratorExp": "name the axis and reduce it",
    "DictComp": "write dict(a=..., b=...)", "SetComp": "sets of pages are made by selectors",
    "JoinedStr": "text has no meaning in a program", "Subscript": "axes have names: use split, rename or a reduction",
    "Await": "remove it", "Yield": "use return", "NamedExpr": "assign on a line of its own",
    "Import": "only `from vortexlab.dsl import *` may be imported", "ImportFrom": "imports go at the top of the file",
    "List": "there are no lists; combine sets with | and &", "Tuple": "return one value, or dict(a=..., b=...)",
    "Pow": "write x * x, sqrt(x) or exp(x)", "MatMult": "write dot(a, b, axis)", "Starred": "name each argument",
    "Assert": "remove it", "Try": "remove it", "With": "remove it", "Delete": "remove it", "Raise": "remove it",
    "FunctionDef": "a method has no inner functions", "Global": "remove it", "Match": "write where(condition, a, b)",
}  # fmt: skip


def place_of(node: ast.AST) -> Place:
    return Place(getattr(node, "lineno", 1), getattr(node, "col_offset", 0) + 1)


def suggestion(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(sorted(known)[:20]) or 'nothing'}"


def refused(node: ast.AST) -> Finding:
    kind = type(node).__name__
    return place_of(node).error(
        "not-in-language", f"{kind} is Python that is not in the language", hint=_REFUSED.get(kind, "see the language reference")
    )


class Tracer:
    """Evaluates one method.

    `scope` holds parameters, knobs and class constants by name; `axes` the names of axes, which a method extends by
    those it makes, so that `score` can name what `summarize` split.
    """

    def __init__(self, graph: Graph, scope: Mapping[str, Item | Knob], axes: set[str] | None = None):
        self.graph = graph
        self.scope: dict[str, Item | Knob] = dict(scope)
        self.axes = set(RESERVED_AXES) if axes is None else axes
        self.used: set[str] = set()

    def run(self, method: ast.FunctionDef) -> Item | dict[str, Value]:
        """The returned value, or the returned mapping."""
        for position, statement in enumerate(method.body):
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and position == 0:
                continue
            if isinstance(statement, ast.Assign):
                if len(statement.targets) != 1 or not isinstance(statement.targets[0], ast.Name):
                    raise place_of(statement).error("assignment", "assign to one plain name", hint="name = expression")
                self.scope[self._assignable(statement.targets[0])] = self.value(statement.value)
            elif isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
                name = self._assignable(statement.target)
                self.scope[name] = self._binary(statement.op, statement, statement.target, statement.value)
            elif isinstance(statement, ast.Return):
                if statement.value is None:
                    raise place_of(statement).error("empty-return", "return gives nothing back", hint="return a value")
                if position != len(method.body) - 1:
                    raise place_of(method.body[position + 1]).error("dead-statement", "statements after return never run")
                mapping = self._mapping(statement.value)
                return mapping if mapping is not None else self.item(statement.value)
            else:
                raise refused(statement)
        raise place_of(method).error("no-return", f"{method.name} does not return anything", hint="end it with return")

    def _assignable(self, name: ast.Name) -> str:
        if name.id in FUNCTIONS or name.id in self.axes:
            raise place_of(name).error("name-taken", f"{name.id} is a word of the language", hint="choose another name")
        return name.id

    def _mapping(self, node: ast.expr) -> dict[str, Value] | None:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            if node.args or any(k.arg is None for k in node.keywords):
                raise place_of(node).error("mapping", "dict takes named values only", hint="dict(lo=..., hi=...)")
            pairs = [(str(k.arg), k.value) for k in node.keywords]
        elif isinstance(node, ast.Dict):
            pairs = []
            for key, value in zip(node.keys, node.values, strict=True):
                if not isinstance(key, ast.Constant) or not isinstance(key.value, str) or not key.value.isidentifier():
                    raise place_of(node).error("mapping", "the keys of a mapping are plain names", hint="dict(lo=...)")
                pairs.append((key.value, value))
        else:
            return None
        if len({key for key, _ in pairs}) != len(pairs):
            raise place_of(node).error("mapping", "a name occurs twice in the mapping")
        return {key: self.value(value) for key, value in pairs}

    # ---- expressions

    def value(self, node: ast.expr) -> Value:
        item = self.item(node)
        if isinstance(item, Value):
            return item
        place = place_of(node)
        if isinstance(item, Axis):
            raise place.error("axis-as-value", f"{item.name} is the name of an axis, not a value")
        if isinstance(item, Record):
            hint = f"for example {item.what}.{next(iter(item.members), 'name')}"
            raise place.error("record-as-value", f"{item.what} is not a value by itself", hint=hint)
        raise place.error("text-as-value", "text has no meaning here", found=repr(item.value))

    def item(self, node: ast.expr) -> Item:
        place = place_of(node)
        if isinstance(node, ast.Constant):
            return self._constant(node, place)
        if isinstance(node, ast.Name):
            return self._name(node.id, place)
        if isinstance(node, ast.Attribute):
            owner = self.item(node.value)
            if isinstance(owner, Record):
                if node.attr not in owner.members:
                    raise place.error("unknown-member", f"{owner.what} has no {node.attr}",
                                      hint=suggestion(node.attr, list(owner.members)))  # fmt: skip
                return owner.members[node.attr](place)
            raise place.error("unknown-attribute", f"a value has no attribute {node.attr}",
                              hint=suggestion(node.attr, list(METHODS)) + "; methods are called")  # fmt: skip
        if isinstance(node, ast.BinOp):
            return self._binary(node.op, node, node.left, node.right)
        if isinstance(node, ast.UnaryOp):
            return self._unary(node, place)
        if isinstance(node, ast.Compare):
            if len(node.ops) != 1:
                raise place.error("chained-comparison", "comparisons do not chain", hint="write (a < b) and (b < c)")
            if type(node.ops[0]) not in _COMPARE:
                raise place.error("not-in-language", f"{type(node.ops[0]).__name__} is not a comparison of the language",
                                  expected="< <= > >= == !=")  # fmt: skip
            op, swap = _COMPARE[type(node.ops[0])]
            a, b = self.value(node.left), self.value(node.comparators[0])
            return self.graph.compare(op, *((b, a) if swap else (a, b)), place)
        if isinstance(node, ast.BoolOp):
            op = "and" if isinstance(node.op, ast.And) else "or"
            made = self.value(node.values[0])
            for other in node.values[1:]:
                made = self.graph.logic(op, made, self.value(other), place)
            return made
        if isinstance(node, ast.Call):
            return self._call(node, place)
        raise refused(node)

    def _constant(self, node: ast.Constant, place: Place) -> Item:
        value = node.value
        if isinstance(value, bool):
            return self.graph.const(value, place)
        if isinstance(value, int):
            if abs(value) >= 2**53:
                raise place.error("number-range", "the number is too large", found=str(value), expected="below 2**53")
            return self.graph.const(value, place)
        if isinstance(value, float):
            if not math.isfinite(value) or (value != 0 and not 1e-30 <= abs(value) <= 1e30):
                raise place.error("number-range", "the number is outside the range of the language", found=str(value),
                                  expected="0, or between 1e-30 and 1e30 in size")  # fmt: skip
            return self.graph.const(value, place)
        if isinstance(value, str):
            return Text(value)
        raise place.error("not-in-language", f"{value!r} has no meaning in a program", expected="a number")

    def _name(self, name: str, place: Place) -> Item:
        self.used.add(name)
        if name in self.scope:
            held = self.scope[name]
            if isinstance(held, Value) and self.graph.nodes[held.index].op == "const":
                return self.graph.const(self.graph.nodes[held.index].attrs["value"], place)  # type: ignore[arg-type]
            return self.knob(held, place) if isinstance(held, Knob) else held
        if name in self.axes:
            return Axis(name)
        if name == "everything":
            return self.graph.add("everything", Type(SET), (), place)
        known = [*self.scope, *FUNCTIONS, *self.axes]
        raise place.error("unknown-name", f"unknown name {name}", hint=suggestion(name, known))

    def knob(self, knob: Knob, place: Place) -> Item:
        if knob.kind == "choice" and isinstance(knob.default, str):
            return Text(KnobRef(knob.name))
        kind = knob.kind
        if kind == "choice":
            kind = FLOAT if any(isinstance(choice, float) for choice in knob.choices) else INT
        return self.graph.add("knob", Type({"int": INT, "float": FLOAT, "bool": "bool"}[kind]), (), place, name=knob.name)

    def _binary(self, op: ast.operator, node: ast.AST, left: ast.expr, right: ast.expr) -> Value:
        place = place_of(node)
        if type(op) not in _BINARY:
            raise place.error("not-in-language", f"{type(op).__name__} is not an operator of the language",
                              hint=_REFUSED.get(type(op).__name__, ""))  # fmt: skip
        a, b = self.value(left), self.value(right)
        name = _BINARY[type(op)]
        if name in ("or", "and"):
            for value in (a, b):
                if value.type.kind != SET:
                    raise place.error("set-and-number", "| and & combine sets of pages", found=f"{a} and {b}",
                                      hint="between truth values write `or` and `and`; make sets with topk, first, last, ...")  # fmt: skip
        return self.graph.binary(name, a, b, place)

    def _unary(self, node: ast.UnaryOp, place: Place) -> Value:
        x = self.value(node.operand)
        if isinstance(node.op, ast.USub):
            if isinstance(node.operand, ast.Constant) and isinstance(node.operand.value, (int, float)):
                return self.graph.const(-node.operand.value, place)
            return self.graph.unary("neg", x, place)
        if isinstance(node.op, ast.UAdd):
            return x
        if isinstance(node.op, ast.Not):
            return self.graph.unary("not", x, place)
        self.graph.page_set(x, "what ~ is applied to", place)
        return self.graph.add("complement", x.type, (x,), place)

    # ---- calls

    def _call(self, node: ast.Call, place: Place) -> Value:
        if any(isinstance(arg, ast.Starred) for arg in node.args) or any(k.arg is None for k in node.keywords):
            raise place.error("not-in-language", "arguments are not unpacked", hint=_REFUSED["Starred"])
        from vortexlab.dsl.calls import call_function, call_method

        if isinstance(node.func, ast.Attribute):
            owner = self.item(node.func.value)
            if isinstance(owner, Value):
                if node.func.attr not in METHODS:
                    raise place.error("unknown-method", f"a value has no method {node.func.attr}",
                                      hint=suggestion(node.func.attr, list(METHODS)))  # fmt: skip
                return call_method(self, owner, node.func.attr, node, place)
            raise place.error("not-callable", "this is not something that can be called")
        if isinstance(node.func, ast.Name):
            name = node.func.id
            if name not in FUNCTIONS:
                hint = {"int": "use floor(x) or ceil(x)", "round": "use floor(x + 0.5)", "mean": "write x.mean(axis)",
                        "sum": "write x.sum(axis)"}.get(name) or suggestion(name, list(FUNCTIONS))  # fmt: skip
                raise place.error("unknown-function", f"unknown function {name}", hint=hint)
            return call_function(self, name, node, place)
        raise refused(node.func)
