"""The shape of a program file: one decorated class with declarations, constants and methods."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from vortexlab.dsl.declarations import check_each_once, is_knob_call, one_of, read_knob, whole_number
from vortexlab.dsl.ir import DTYPES, KV_DTYPES, Knob, KnobRef, Memory, Param
from vortexlab.dsl.places import MAX_FINDINGS, Findings, Place, place_of
from vortexlab.dsl.sizes import settings
from vortexlab.dsl.state import is_memory, is_param, read_memory, read_param
from vortexlab.dsl.words import METHOD_PARAMETERS, PARAMETERS, RESERVED, owners, refused, suggestion

MAX_PAGE = 256
MAX_BLOCK = 4096
SUMMARY_DTYPES = ("kv", *DTYPES)
_OPTIONS = ("page", "block", "kv", "summaries", "seed")
_EXAMPLE = "{0} = 4, or {0} = knob.int(1, 64, default=4)"


@dataclass
class Outline:
    """What stands in a program file, its expressions not yet evaluated. `places` are those of its declarations.

    `is_latent` is whether the program speaks of a latent part of keys.
    """

    name: str
    doc: str
    place: Place
    page: int | KnobRef = 16
    block: int | KnobRef | None = None
    kv_dtype: str = "auto"
    is_latent: bool = False
    seed: int = 0
    summary_dtype: str = "kv"
    knobs: dict[str, Knob] = field(default_factory=dict)
    params: dict[str, Param] = field(default_factory=dict)
    memories: dict[str, Memory] = field(default_factory=dict)
    constants: dict[str, ast.expr] = field(default_factory=dict)
    options: dict[str, Place] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    methods: dict[str, ast.FunctionDef] = field(default_factory=dict)


def read_outline(text: str, tree: ast.Module, findings: Findings) -> Outline | None:
    """The outline of a text by its tree, or None where there is no class to speak of. Findings are collected."""
    body = findings.guard(lambda: _the_class(tree))
    if body is None:
        return None
    outline = Outline(body.name, ast.get_docstring(body) or "", place_of(body))
    if "latent" in text:
        outline.is_latent = any(isinstance(node, ast.Attribute) and node.attr == "latent" for node in ast.walk(body))
    findings.guard(lambda: _decorator(body, outline))
    for position, item in enumerate(body.body):
        findings.guard(lambda item=item, position=position: _member(item, position, outline))  # type: ignore[misc]
        if len(findings) >= MAX_FINDINGS:
            break
    for step in (_axes_of_params, _blocks):
        findings.guard(lambda step=step: step(outline))  # type: ignore[misc]
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
                found=ast.unparse(item).split("\n")[0][:40],
                expected="one class decorated with @program(page=16)",
                hint="move it into the class, or remove it"
                if any(isinstance(other, ast.ClassDef) for other in tree.body)
                else "write @program(page=16) and class Name: above it, and indent it into the class",
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
            outline.page = _length("page", keyword.value, MAX_PAGE, outline)
        elif keyword.arg == "block":
            outline.block = _length("block", keyword.value, MAX_BLOCK, outline)
        elif keyword.arg == "kv":
            outline.kv_dtype = one_of(keyword.value, KV_DTYPES)
        elif keyword.arg == "summaries":
            outline.summary_dtype = one_of(keyword.value, SUMMARY_DTYPES)
        elif keyword.arg == "seed":
            outline.seed = whole_number(keyword.value, 0, 2**32 - 1)
        else:
            raise place_of(keyword.value).error(
                "unknown-argument",
                f"program has no option {keyword.arg}",
                expected=", ".join(_OPTIONS),
                hint=suggestion(str(keyword.arg), _OPTIONS),
                found=f"{keyword.arg}=",
            )


def _length(name: str, node: ast.expr, most: int, outline: Outline) -> int | KnobRef:
    """Tokens of a page or queries of a block: a number or a knob."""
    outline.options[name] = place_of(node)
    if not is_knob_call(node):
        return whole_number(node, 1, most)
    assert isinstance(node, ast.Call)
    knob = read_knob(name, node)
    sizes = knob.choices if knob.kind == "choice" else (knob.low, knob.high)
    if not all(type(size) is int and 1 <= size <= most for size in sizes):
        what, example = ("tokens", "8, 16, 32, 64") if name == "page" else ("queries", "64, 128")
        raise place_of(node).error(
            "page-size" if name == "page" else "block-size",
            f"the {name} knob offers whole numbers of {what}",
            found=", ".join(map(repr, sizes)),
            expected=f"1 to {most}",
            hint=f"{name}=knob.choice({example}, default={example.split(', ')[-1]})",
        )
    outline.knobs[name], outline.places[name] = knob, place_of(node)
    return KnobRef(name)


def _axes_of_params(outline: Outline) -> None:
    for param in outline.params.values():
        for axis in param.sizes:
            if axis in outline.places or axis in PARAMETERS:
                raise outline.places[param.name].error(
                    "axis-taken",
                    f"{axis} is the name of something else here",
                    found=f"{param.name} with the axis {axis}",
                    expected="a name of its own",
                    hint="choose another name for the axis",
                )


def _blocks(outline: Outline) -> None:
    """Prefill by blocks needs their length and what stands for one; blocks and pages meet at their ends."""
    if "pool" in outline.methods and "block" not in outline.options:
        raise place_of(outline.methods["pool"]).error(
            "pool-without-block",
            "pool makes one query of a block, and the program has no blocks",
            found="def pool",
            expected="@program(page=16, block=64)",
            hint="say how many queries of prefill stand in a block, or remove pool for dense prefill",
        )
    if outline.block is None:
        return
    if "pool" not in outline.methods:
        raise outline.options["block"].error(
            "block-without-pool",
            "the program names a block of prefill queries and does not pool them",
            found="block=",
            expected="def pool(q, ctx): return q.mean(query)",
            hint="write pool, or remove block= for dense prefill",
        )
    refs = {name: value for name, value in (("page", outline.page), ("block", outline.block))}
    for is_default, setting in settings({v.name for v in refs.values() if isinstance(v, KnobRef)}, outline.knobs):
        page, block = (int(setting[v.name] if isinstance(v, KnobRef) else v) for v in refs.values())  # type: ignore[arg-type]
        if block % page and page % block:
            raise outline.options["block"].error(
                "block-size",
                "blocks and pages do not meet at their ends",
                found=f"a block of {block} queries and pages of {page} tokens",
                expected="a multiple or a divisor of the page size",
                hint="choose powers of two" + ("" if is_default else ", for every setting of the knobs"),
            )


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
        elif is_param(item.value):
            assert isinstance(item.value, ast.Call)
            outline.params[name] = read_param(name, item.value)
        elif is_memory(item.value):
            assert isinstance(item.value, ast.Call)
            outline.memories[name] = read_memory(name, item.value, outline.knobs)
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
            hint="the page size is an option: @program(page=32)" if name == "page" else "choose another name",
            found=name,
            expected="a name of your own",
        )


def _method(item: ast.FunctionDef, outline: Outline) -> None:
    place = place_of(item)
    if item.name not in METHOD_PARAMETERS:
        raise place.error(
            "unknown-method",
            f"a program has no method {item.name}",
            expected=", ".join(METHOD_PARAMETERS),
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
            found=f"@{ast.unparse(item.decorator_list[0])}" if item.decorator_list
            else f"def {item.name}({ast.unparse(arguments)[:40]})" + (f" -> {ast.unparse(item.returns)}" if item.returns
                                                                     else ""),
        )
    for argument in arguments.args:
        if argument.arg not in allowed:
            hint = "methods have no self" if argument.arg == "self" else suggestion(argument.arg, list(allowed))
            if argument.arg in PARAMETERS:
                hint = f"{argument.arg} is given to {owners(argument.arg)}"
                if item.name == "select" and argument.arg in ("q", "s"):
                    hint += "; let score return what select needs: dict(a=..., b=...)"
            raise place_of(argument).error(
                "unknown-parameter",
                f"{item.name} has no parameter {argument.arg}",
                expected=shape,
                hint=hint,
                found=argument.arg,
            )
