"""The words of the language, and what to say about those that are not."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable

from vortexlab.dsl.graph import RESERVED_AXES
from vortexlab.dsl.ir import REDUCTIONS
from vortexlab.dsl.ops import OPS
from vortexlab.dsl.places import Finding, place_of

#: Functions that take one value or two and are ops of the same name.
UNARY = ("abs", "exp", "log", "sqrt", "relu", "sigmoid", "silu", "tanh", "floor", "ceil", "float")
BINARY = {"maximum": "maximum", "minimum": "minimum", "max": "maximum", "min": "minimum"}
SELECTORS = tuple(spec.name for spec in OPS.values() if spec.group == "selector")
FUNCTIONS = (
    *UNARY, *BINARY, "where", "clamp", "dot", "softmax", "share", "member", "index", "concat", *SELECTORS, "reuse",
    "attention", "dict",
)  # fmt: skip
SCANS = {"cumsum": "sum", "cummax": "max", "cummin": "min"}
METHODS = (
    *REDUCTIONS, "reduce", "split", "merge", "rename", "slice", "take", "shift", "window", *SCANS, "sort", "argmax",
    "index", "to",
)  # fmt: skip

METHOD_PARAMETERS = {
    "summarize": ("k", "v", "ctx"),
    "pool": ("q", "ctx"),
    "score": ("q", "s", "m", "ctx"),
    "select": ("score", "m", "ctx"),
    "attend": ("q", "s", "score", "pages", "m", "ctx"),
    "remember": ("q", "s", "score", "pages", "m", "ctx"),
}
PARAMETERS = frozenset(name for names in METHOD_PARAMETERS.values() for name in names)
RESERVED = frozenset({*RESERVED_AXES, *FUNCTIONS, "ctx", "program", "knob", "param", "memory"})

_CHOICE = "write where(condition, a, b)"
_REDUCE = "an axis is handled whole: reduce it with x.sum(axis), x.max(axis), ..."
_SETS = "sets of pages are made by topk, first, last, ... and combine with |, & and -"
_MANY_OF = "reduce an axis with x.sum(axis), x.max(axis), ...; sets of pages combine with |, & and -"
_TARGET, _IMPORT = (
    "assign one plain name on each line",
    "only `from vortexlab.dsl import *` may be imported, at the top of the file",
)
_HINTS = {
    **dict.fromkeys(("If", "IfExp", "Match"), _CHOICE),
    **dict.fromkeys(("For", "AsyncFor", "While"), _REDUCE),
    **dict.fromkeys(("ListComp", "GeneratorExp", "SetComp"), _MANY_OF),
    **dict.fromkeys(("Set", "List"), _SETS),
    **dict.fromkeys(("Assign", "AugAssign"), _TARGET),
    **dict.fromkeys(("Import", "ImportFrom"), _IMPORT),
    **dict.fromkeys(("Dict", "DictComp"), "a mapping stands behind return only: return dict(a=..., b=...)"),
    "AnnAssign": "write name = value, without a type",
    "Expr": "assign the value to a name, or remove it",
    "Lambda": "write the expression where it is used",
    "NamedExpr": "assign on a line of its own",
    "Pass": "remove it",
    "Subscript": "axes have names: write x.slice(axis, start, stop), x.take(axis, i) or a reduction; "
    "pages are left out with among=",
    "Tuple": "return one value, or dict(a=..., b=...)",
    "FunctionDef": "a method has no inner functions: write the expression where it is used",
    "ClassDef": "a program has no inner classes: remove it",
    "Pow": "write x * x, sqrt(x) or exp(x)",
    "MatMult": "write dot(a, b, axis)",
    "BitXor": "write (a | b) - (a & b)",
    "LShift": "write x * 2",
    "RShift": "write x // 2",
    "Is": "write ==",
    "IsNot": "write !=",
    "In": "write a == 1 or a == 2; whether a set holds a page is member(pages)",
    "NotIn": "write a != 1 and a != 2",
}

_FUNCTION_HINTS = {
    "int": "use floor(x) or ceil(x)",
    "round": "use floor(x + 0.5)",
    "bool": "compare: x > 0",
    "pow": "write x * x, sqrt(x) or exp(x)",
    "print": "remove it: a program prints nothing",
    "len": "use ctx.pages",
    "range": _REDUCE,
    **dict.fromkeys(("matmul", "einsum"), "write dot(a, b, axis)"),
    **{name: f"write x.{name}(axis)" for name in (*REDUCTIONS, *SCANS, "sort", "argmax") if name not in BINARY},
    **{name: f"write x.{name}(...)" for name in ("reduce", "split", "rename", "merge", "slice", "shift")},
    "window": "a sliding window is last(n); neighbours along an axis are x.window(page, near=3)",
    **dict.fromkeys(("sink", "sinks"), "write first(n)"),
    "union": "write a | b",
    "intersect": "write a & b",
    "difference": "write a - b",
    "complement": "write ~a",
    **dict.fromkeys(("isin", "contains", "mask", "is_selected", "selected"), "write member(pages)"),
    "param": "declare it in the class body: gate = param(head, channel)",
    "memory": "declare it in the class body: mass = memory.step(page)",
    "logsumexp": "write x.max(axis) + log(exp(x - x.max(axis)).sum(axis))",
    "argmin": "write (-x).argmax(axis)",
    "argsort": "pages are chosen by topk(score, n); positions by x.argmax(axis)",
}
MODULES = ("torch", "np", "numpy", "math", "F", "nn", "tl", "triton", "vortexlab")
#: What torch and numpy call the functions and methods of the language.
_ELSEWHERE = {
    **dict.fromkeys(("take", "gather", "index_select", "take_along_dim"), "write x.take(axis, i)"),
    **dict.fromkeys(("cat", "stack", "concatenate", "hstack"), "write concat(a, b, axis)"),
    **dict.fromkeys(("arange", "iota", "position", "positions"), "write index(axis), or x.index(axis)"),
    "roll": "write x.shift(axis, n)",
    **dict.fromkeys(("clip", "clamp_min", "clamp_max"), "write clamp(x, low, high)"),
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "chunk"), "write x.split(axis, part=n) or "
                    "x.merge(part, token, into=tokens)"),
    **dict.fromkeys(("squeeze", "unsqueeze", "expand", "transpose", "permute", "t", "T", "contiguous"),
                    "axes are matched by name, in any order: leave it out"),
    **dict.fromkeys(("amax", "amin"), "write x.max(axis) or x.min(axis)"),
    **dict.fromkeys(("std", "var"), "write sqrt((x * x).mean(axis) - x.mean(axis) * x.mean(axis))"),
    **dict.fromkeys(("rms", "square", "pow"), "write x * x, and x.norm(axis) for a root of a sum of squares"),
    **dict.fromkeys(("narrow", "chop"), "write x.slice(axis, start, stop)"),
    **dict.fromkeys(("unfold", "conv1d", "avg_pool1d", "max_pool1d"), "write x.window(axis, near=3) and reduce near"),
    **dict.fromkeys(("bfloat16", "half", "type", "astype", "cast"), 'write x.to("bf16")'),
    **dict.fromkeys(("masked_fill", "where_", "select"), "write where(condition, a, b)"),
    **dict.fromkeys(("item", "detach", "clone", "cpu", "numpy"), "leave it out"),
}  # fmt: skip

_LENGTHS = "lengths are ctx.page (tokens), ctx.head_dim (channels), ctx.group (heads) and ctx.pages"
_PRECISIONS = {
    **dict.fromkeys(("fp8", "float8", "e4m3", "float8_e4m3fn", "int8", "e5m2", "float8_e5m2"), "fp8_e4m3 or fp8_e5m2"),
    "bfloat16": "bf16", **dict.fromkeys(("float16", "half"), "fp16"), **dict.fromkeys(("float32", "float"), "fp32"),
}  # fmt: skip
#: Longer names, and more of them, are not compared: that would cost more than all the rest of reading.
_LONG, _MANY = 24, 150
_SYMBOLS = {
    "Pow": "**", "MatMult": "@", "BitXor": "^", "LShift": "<<", "RShift": ">>", "Is": "is", "IsNot": "is not",
    "In": "in", "NotIn": "not in",
}  # fmt: skip


def suggestion(name: str, known: Iterable[str]) -> str:
    """The closest known name, or the known names."""
    known = sorted(set(known))
    return did_you_mean(name, known) or f"known here: {', '.join(known[:20]) or 'nothing'}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The closest known name, or two that are equally close; empty where none is close."""
    known = sorted(item for item in set(known) if len(item) <= _LONG)[:_MANY] if len(name) <= _LONG else []
    close = difflib.get_close_matches(name, known, 2)
    if len(close) == 2 and _likeness(name, close[0]) > _likeness(name, close[1]):
        close.pop()
    return f"did you mean {' or '.join(sorted(close))}?" if close else ""


def _likeness(name: str, known: str) -> float:
    return difflib.SequenceMatcher(None, known, name).ratio()


def function_hint(name: str) -> str:
    return _FUNCTION_HINTS.get(name) or _ELSEWHERE.get(name) or suggestion(name, FUNCTIONS)


def foreign_hint(node: ast.Attribute) -> str:
    """What to write instead of a member of a module or of `self`; empty where the owner is neither."""
    owner: ast.expr = node
    while isinstance(owner, ast.Attribute):
        owner = owner.value
    name = owner.id if isinstance(owner, ast.Name) else ""
    if name == "self":
        return f"methods have no self: write {node.attr}"
    if name not in MODULES:
        return ""
    known = _FUNCTION_HINTS.get(node.attr) or _ELSEWHERE.get(node.attr)
    if node.attr in OPS or node.attr in FUNCTIONS:
        known = f"write {_call_of(node.attr)}"
    return f"there are no modules: {known or 'use the functions of the language, or write the number out'}"


def _call_of(function: str) -> str:
    return OPS[function].signature if function in OPS else f"{function}(...)"


def precision_hint(name: str, allowed: Iterable[str]) -> str:
    """What to write instead of a precision that does not exist."""
    return f'write "{name}" in quotes' if name in allowed else f"write {_PRECISIONS.get(name, 'one of them')} in quotes"


def method_hint(name: str) -> str:
    """What to write instead of a method that values do not have."""
    if name in ("shape", "size", "ndim", "dtype", "device"):
        return _LENGTHS
    if name in _ELSEWHERE:
        return _ELSEWHERE[name]
    if name in FUNCTIONS:
        return f"write {_call_of(name)}"
    return _FUNCTION_HINTS.get(name) or suggestion(name, METHODS)


def owners(parameter: str) -> str:
    """The methods that a parameter is given to, in words."""
    names = [method for method, parameters in METHOD_PARAMETERS.items() if parameter in parameters]
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def refused(node: ast.AST, at: ast.AST | None = None) -> Finding:
    """The finding about a piece of Python that the language does not have, at the node or at the one around it."""
    kind = type(node).__name__
    found = _SYMBOLS.get(kind) or ast.unparse(node).split("\n")[0][:40]
    return place_of(at or node).error(
        "not-in-language",
        "this is Python that the language does not have",
        found=found,
        hint=_hint_about(node),
        expected="a construct of the language",
    )


def _hint_about(node: ast.AST) -> str:
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
        return f"write {ast.unparse(node.value)[:40]}.{node.slice.value[:40]}"
    if isinstance(node, (ast.Assign, ast.AugAssign)):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "m":
            return f"the method remember writes it: return dict({target.attr}=...)"
    if isinstance(node, ast.Expr) and isinstance(node.value, (ast.Yield, ast.YieldFrom, ast.Await)):
        return "write return"
    default = "leave it out: a body has lines `name = expression` and one return at its end"
    return _HINTS.get(type(node).__name__, default)
