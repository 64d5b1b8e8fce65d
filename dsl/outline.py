"""The shape of a program file: one decorated class with knobs, constants and up to three methods."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from vortexlab.dsl.declarations import check_each_once, is_knob_call, one_of, read_knob, whole_number
from vortexlab.dsl.ir import Knob, KnobRef
from vortexlab.dsl.places import Findings, Place, place_of
from vortexlab.dsl.words import METHOD_PARAMETERS, PARAMETERS, RESERVED, refused, suggestion

MAX_PAGE = 256
SUMMARY_DTYPES = ("kv", "fp32", "bf16", "fp16")
_EXAMPLE = "{0} = 4, or {0} = knob.int(1, 64, default=4)"


@dataclass
class Outline:
    """What stands in a program file, its expressions not yet evaluated. `places` are those of knobs and constants."""

    name: str
    doc: str
    place: Place
    page: int | KnobRef = 16
    seed: int = 0
    summary_dtype: str = "kv"
    knobs: dict[str, Knob] = field(default_factory=dict)
    constants: dict[str, ast.expr] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    methods: dict[str, ast.FunctionDef] = field(default_factory=dict)


def read_outline(tree: ast.Module, findings: Findings) -> Outline | None:
    """The outline, or None where there is no class to speak of. Findings are collected."""
    body = findings.guard(lambda: _the_class(tree))
    if body is None:
        return None
    outline = Outline(body.name, ast.get_docstring(body) or "", place_of(body))
    findings.guard(lambda: _decorator(body, outline))
    for position, item in enumerate(body.body):
        findings.guard(lambda item=item, position=position: _member(item, position, outline))  # type: ignore[misc]
    if "select" not in outline.methods and not findings:
        findings.append(
            outline.place.error(
                "select-missing",
                "the program does not select anything",
                expected="a method select(score, ctx)",
                hint="def select(score): return topk(score, 64)",
                found="no method select",
            ).diagnostic
        )
    return outline


def _the_class(tree: ast.Module) -> ast.ClassDef:
    found: ast.ClassDef | None = None
    for position, item in enumerate(tree.body):
        if is_docstring(item, position):
            continue
        if isinstance(item, ast.ImportFrom) and ast.unparse(item) == "from vortexlab.dsl import *":
            continue
        if isinstance(item, (ast.Import, ast.ImportFrom)):
            raise place_of(item).error(
                "import",
                "a program imports nothing else",
                found=ast.unparse(item)[:60],
                expected="from vortexlab.dsl import *",
                hint="a program needs no other module; remove the line",
            )
        if not isinstance(item, ast.ClassDef):
            raise place_of(item).error(
                "top-level",
                "this cannot stand outside the class",
                found=type(item).__name__,
                expected="one class decorated with @program(page=16)",
                hint="move it into the class, or remove it",
            )
        if found is not None:
            raise place_of(item).error(
                "two-classes",
                "a file holds one program",
                found=f"class {item.name}",
                hint="put it in a file of its own",
                expected="one class",
            )
        found = item
    if found is None:
        raise Place(1, 1).error(
            "no-class",
            "the file holds no program",
            expected="a class decorated with @program",
            hint="@program(page=16) above class Name:",
            found="no class",
        )
    if found.bases or found.keywords or getattr(found, "type_params", None):
        raise place_of(found).error(
            "class-bases",
            "a program has no base classes",
            expected=f"class {found.name}:",
            found=ast.unparse(found.bases[0])[:40] if found.bases else f"class {found.name}(...)",
            hint="a program stands alone; copy what it needs",
        )
    return found


def is_docstring(item: ast.stmt, position: int) -> bool:
    return (
        position == 0
        and isinstance(item, ast.Expr)
        and isinstance(item.value, ast.Constant)
        and isinstance(item.value.value, str)
    )


def _decorator(body: ast.ClassDef, outline: Outline) -> None:
    expected = "@program(page=16)"
    if len(body.decorator_list) != 1:
        raise place_of(body).error(
            "decorator",
            "a program has exactly one decorator",
            found=f"{len(body.decorator_list)} decorators",
            expected=expected,
            hint="write @program(page=16) above the class",
        )
    node = body.decorator_list[0]
    if isinstance(node, ast.Name) and node.id == "program":
        return
    if not (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "program" and not node.args
    ):
        raise place_of(node).error(
            "decorator",
            "this is not the decorator of a program",
            found=ast.unparse(node)[:40],
            expected=expected,
            hint="write @program(page=16) above the class",
        )
    check_each_once("program", node)
    for keyword in node.keywords:
        if keyword.arg == "page":
            _page(keyword.value, outline)
        elif keyword.arg == "summaries":
            outline.summary_dtype = one_of(keyword.value, SUMMARY_DTYPES)
        elif keyword.arg == "seed":
            outline.seed = whole_number(keyword.value, 0, 2**32 - 1)
        else:
            raise place_of(keyword.value).error(
                "unknown-argument",
                f"program has no option {keyword.arg}",
                expected="page, summaries, seed",
                hint=suggestion(str(keyword.arg), ["page", "summaries", "seed"]),
                found=f"{keyword.arg}=",
            )


def _page(node: ast.expr, outline: Outline) -> None:
    if not is_knob_call(node):
        outline.page = whole_number(node, 1, MAX_PAGE)
        return
    assert isinstance(node, ast.Call)
    knob = read_knob("page", node)
    sizes = knob.choices if knob.kind == "choice" else (knob.low, knob.high)
    if not all(type(size) is int and 1 <= size <= MAX_PAGE for size in sizes):
        raise place_of(node).error(
            "page-size",
            "the page knob offers whole numbers of tokens",
            found=", ".join(map(repr, sizes)),
            expected=f"1 to {MAX_PAGE}",
            hint="page=knob.choice(8, 16, 32, 64, default=16)",
        )
    outline.knobs["page"], outline.page, outline.places["page"] = knob, KnobRef("page"), place_of(node)


def _member(item: ast.stmt, position: int, outline: Outline) -> None:
    if is_docstring(item, position):
        return
    if isinstance(item, ast.FunctionDef):
        _method(item, outline)
    elif isinstance(item, ast.Assign) and len(item.targets) == 1 and isinstance(item.targets[0], ast.Name):
        name, place = item.targets[0].id, place_of(item)
        check_name(name, place)
        if name in outline.places or name in PARAMETERS:
            raise place.error(
                "name-taken", f"{name} is taken", hint="choose another name", found=name, expected="a name of its own"
            )
        outline.places[name] = place
        if is_knob_call(item.value):
            assert isinstance(item.value, ast.Call)
            outline.knobs[name] = read_knob(name, item.value)
        elif (
            isinstance(item.value, ast.Call) and isinstance(item.value.func, ast.Name) and item.value.func.id == "knob"
        ):
            raise place_of(item.value).error(
                "knob-kind",
                "a knob has a kind",
                found=ast.unparse(item.value)[:40],
                expected="knob.int, knob.float, knob.choice, knob.bool",
                hint="knob.int(1, 64, default=4)",
            )
        else:
            outline.constants[name] = item.value
    else:
        raise refused(item)


def check_name(name: str, place: Place) -> None:
    """Words of the language keep their meaning everywhere."""
    if name in RESERVED or name.startswith("__"):
        raise place.error(
            "name-taken",
            f"{name} is a word of the language",
            hint="choose another name",
            found=name,
            expected="a name of your own",
        )


def _method(item: ast.FunctionDef, outline: Outline) -> None:
    place = place_of(item)
    if item.name not in METHOD_PARAMETERS:
        raise place.error(
            "unknown-method",
            f"a program has no method {item.name}",
            expected="summarize, score, select",
            hint=suggestion(item.name, list(METHOD_PARAMETERS)),
            found=f"def {item.name}",
        )
    if item.name in outline.methods:
        raise place.error(
            "method-twice",
            f"{item.name} is defined twice",
            hint="keep one of them",
            found=f"def {item.name}",
            expected="each method once",
        )
    outline.methods[item.name] = item  # even if its head is wrong: no finding about a missing method then
    allowed = METHOD_PARAMETERS[item.name]
    arguments = item.args
    shape = f"def {item.name}({', '.join(allowed)})"
    if (
        item.decorator_list
        or item.returns
        or arguments.vararg
        or arguments.kwarg
        or arguments.kwonlyargs
        or arguments.posonlyargs
        or arguments.defaults
        or any(a.annotation for a in arguments.args)
        or len({a.arg for a in arguments.args}) != len(arguments.args)
        or getattr(item, "type_params", None)
    ):
        raise place.error(
            "method-shape",
            f"{item.name} has plain parameters only",
            expected=shape,
            hint="no decorators, defaults, annotations or stars, and each parameter once",
            found=f"def {item.name}({ast.unparse(arguments)[:40]})",
        )
    for argument in arguments.args:
        if argument.arg not in allowed:
            hint = "methods have no self" if argument.arg == "self" else suggestion(argument.arg, list(allowed))
            raise place_of(argument).error(
                "unknown-parameter",
                f"{item.name} has no parameter {argument.arg}",
                expected=shape,
                hint=hint,
                found=argument.arg,
            )
