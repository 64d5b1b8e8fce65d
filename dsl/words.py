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

_CHOICE, _REDUCE = "write where(condition, a, b)", "name the axis and reduce it"
_SETS = "sets of pages are made by topk, first, last, ... and combine with |, & and -"
_TARGET, _IMPORT = (
    "assign to one plain name",
    "only `from vortexlab.dsl import *` may be imported, at the top of the file",
)
_HINTS = {
    **dict.fromkeys(("If", "IfExp", "Match"), _CHOICE),
    **dict.fromkeys(("For", "While", "ListComp", "GeneratorExp"), _REDUCE),
    **dict.fromkeys(("Set", "SetComp", "List"), _SETS),
    **dict.fromkeys(("Assign", "AugAssign"), _TARGET),
    **dict.fromkeys(("Import", "ImportFrom"), _IMPORT),
    **dict.fromkeys(("Dict", "DictComp"), "a mapping stands behind return only: return dict(a=..., b=...)"),
    "AnnAssign": "write name = value, without a type",
    "Expr": "assign the value to a name, or remove it",
    "Lambda": "write the expression where it is used",
    "NamedExpr": "assign on a line of its own",
    "Pass": "remove it",
    "Subscript": "axes have names: write x.slice(axis, start, stop), x.take(axis, i) or a reduction",
    "Tuple": "return one value, or dict(a=..., b=...)",
    "FunctionDef": "a method has no inner functions",
    "ClassDef": "a program has no inner classes",
    "Pow": "write x * x, sqrt(x) or exp(x)",
    "MatMult": "write dot(a, b, axis)",
    "BitXor": "write (a | b) - (a & b)",
    "LShift": "write x * 2",
    "RShift": "write x // 2",
    "Is": "write ==",
    "IsNot": "write !=",
    "In": "write a == 1 or a == 2",
    "NotIn": "write a != 1 and a != 2",
}

_FUNCTION_HINTS = {
    "int": "use floor(x) or ceil(x)",
    "round": "use floor(x + 0.5)",
    "bool": "compare: x > 0",
    "pow": "write x * x, sqrt(x) or exp(x)",
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

_SYMBOLS = {
    "Pow": "**", "MatMult": "@", "BitXor": "^", "LShift": "<<", "RShift": ">>", "Is": "is", "IsNot": "is not",
    "In": "in", "NotIn": "not in",
}  # fmt: skip


def suggestion(name: str, known: Iterable[str]) -> str:
    """The closest known name, or the known names."""
    known = sorted(set(known))
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(known[:20]) or 'nothing'}"


def function_hint(name: str) -> str:
    return _FUNCTION_HINTS.get(name) or _ELSEWHERE.get(name) or suggestion(name, FUNCTIONS)


def method_hint(name: str) -> str:
    """What to write instead of a method that values do not have."""
    if name in _ELSEWHERE:
        return _ELSEWHERE[name]
    return f"write {name}(x)" if name in FUNCTIONS else suggestion(name, METHODS)


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
        hint=_HINTS.get(kind, "see the language reference"),
        expected="a construct of the language",
    )
