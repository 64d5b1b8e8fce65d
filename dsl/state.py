"""Reads the declarations of learned constants and of memories in a class body."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from vortexlab.dsl.declarations import check_each_once, literal, shown, whole_number
from vortexlab.dsl.graph import RESERVED_AXES
from vortexlab.dsl.ir import FLOAT, INT, MEMORY_SCOPES, SET, Knob, KnobRef, Memory, Param, Type, ordered
from vortexlab.dsl.places import place_of
from vortexlab.dsl.sizes import MAX_LENGTH
from vortexlab.dsl.words import RESERVED, suggestion

MAX_PERIOD = 2**20  #: steps after which a kept set or a memory may at most be made anew
_PARAM = "param(head, channel, rank=64, per_layer=True, per_kv_head=False)"
_PARAM_OPTIONS = ("per_layer", "per_kv_head", "kind")
_PARAM_AXES = ("head", "token", "channel")
_MEMORY = {
    "step": "memory.step(page, init=0.0, every=1) or memory.step(pages)",
    "layer": "memory.layer(page, init=0.0) or memory.layer(pages)",
}
_MEMORY_AXES = ("page", "head", "channel")


def is_param(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "param"


def is_memory(node: ast.expr) -> bool:
    """`memory.step(...)`, `memory.layer(...)` and what looks like them."""
    func = node.func if isinstance(node, ast.Call) else None
    owner = func.value if isinstance(func, ast.Attribute) else func
    return isinstance(owner, ast.Name) and owner.id == "memory"


def read_param(name: str, node: ast.Call) -> Param:
    """`param("tensor", head, channel, rank=64, per_layer=True, per_kv_head=False, kind="float")`."""
    check_each_once("param", node)
    arguments = list(node.args)
    tensor = name
    if arguments and isinstance(arguments[0], ast.Constant) and isinstance(arguments[0].value, str):
        tensor = arguments.pop(0).value  # type: ignore[attr-defined]
        if not tensor or not tensor.isascii() or not tensor.isprintable():
            raise place_of(node.args[0]).error(
                "param-tensor",
                "this is no name of a tensor",
                found=repr(tensor)[:40],
                expected="plain letters, digits, dots and underscores",
                hint="give the name in the safetensors file, or leave it out",
            )
    axes = [_axis(argument, _PARAM_AXES, "param-axes", _PARAM) for argument in arguments]
    sizes: dict[str, int] = {}
    options: dict[str, bool | str] = {"per_layer": True, "per_kv_head": False, "kind": FLOAT}
    for keyword in node.keywords:
        key, place = str(keyword.arg), place_of(keyword.value)
        if key == "kind":
            options[key] = _kind(keyword.value)
        elif key in _PARAM_OPTIONS:
            value = literal(keyword.value)
            if not isinstance(value, bool):
                raise place.error(
                    "param-option",
                    f"{key} is True or False",
                    found=shown(keyword.value),
                    expected=_PARAM,
                    hint=f"{key}=True: the tensor has one entry for each",
                )
            options[key] = value
        else:
            if key in RESERVED or key in RESERVED_AXES:
                raise place.error(
                    "param-axes",
                    f"{key} is a word of the language and has no size of its own here",
                    found=f"{key}=",
                    expected=_PARAM,
                    hint=f"write param({key}, ...) for the model's axis, or give the axis a name of its own"
                    if key in _PARAM_AXES
                    else "choose another name for the axis",
                )
            sizes[key] = whole_number(keyword.value, 1, MAX_LENGTH)
    if not axes and not sizes and not {k.arg for k in node.keywords} & {"per_layer", "per_kv_head"}:
        raise place_of(node).error(
            "param-axes",
            f"{name} has no axes",
            found=shown(node),
            expected=_PARAM,
            hint="name the axes: head, channel, rank=64; for one number per layer or KV head say per_layer=True, "
            "per_kv_head=True",
        )
    if len(set(axes)) != len(axes):
        raise place_of(node).error(
            "param-axes", f"an axis of {name} is given twice", found=shown(node), expected=_PARAM,
            hint="make the second one an axis of your own with a size",
        )  # fmt: skip
    return Param(
        name,
        str(options["kind"]),
        ordered({*axes, *sizes}),
        sizes,
        tensor,
        bool(options["per_layer"]),
        bool(options["per_kv_head"]),
    )


def _kind(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and node.value in (FLOAT, INT):
        return str(node.value)
    raise place_of(node).error(
        "param-option",
        "a learned constant is float or int",
        found=shown(node),
        expected='kind="float" or kind="int"',
        hint="int constants are positions: x.take(channel, gate)",
    )


def _axis(node: ast.expr, allowed: tuple[str, ...], code: str, shape: str) -> str:
    if isinstance(node, ast.Name) and node.id in allowed:
        return node.id
    made = isinstance(node, ast.Name) and node.id not in RESERVED_AXES
    raise place_of(node).error(
        code,
        "this names no axis of the model that can stand here",
        found=shown(node),
        expected=f"{', '.join(allowed)}; {shape}",
        hint=f"an axis of the program has a size: {shown(node)}=64" if made and code == "param-axes"
        else f"choose among {', '.join(allowed)}",
    )  # fmt: skip


def read_memory(name: str, node: ast.Call, knobs: Mapping[str, Knob]) -> Memory:
    """`memory.step(page, head, init=0.0, every=4)`, `memory.step(pages)` and `memory.layer(...)`."""
    place = place_of(node)
    scope = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    if scope not in MEMORY_SCOPES:
        raise place.error(
            "memory-kind",
            "a memory lasts for a step or for a layer",
            found=shown(node),
            expected=" or ".join(f"memory.{known}(...)" for known in MEMORY_SCOPES),
            hint=suggestion(scope, MEMORY_SCOPES) if scope else f"write {name} = memory.step(page)",
        )
    check_each_once(f"memory.{scope}", node)
    type_ = _memory_type(name, scope, node)
    init, every = 0.0, 1
    for keyword in node.keywords:
        if keyword.arg == "init" and type_.kind == FLOAT:
            value = literal(keyword.value)
            if isinstance(value, (bool, str)) or value is None:
                raise place_of(keyword.value).error(
                    "memory-option",
                    "init is a number",
                    found=shown(keyword.value),
                    expected=_MEMORY[scope],
                    hint="it is what a page begins with",
                )
            init = float(value)
        elif keyword.arg == "every" and scope == "step":
            every = _period(keyword.value, knobs)  # type: ignore[assignment]
        else:
            allowed = [*(["init"] if type_.kind == FLOAT else []), *(["every"] if scope == "step" else [])]
            raise place_of(keyword.value).error(
                "unknown-argument",
                f"memory.{scope}{' of a set' if type_.kind == SET else ''} has no option {keyword.arg}",
                found=f"{keyword.arg}=",
                expected=_MEMORY[scope],
                hint=suggestion(str(keyword.arg), allowed) if allowed else "a set begins empty",
            )
    return Memory(name, scope, type_, init, every)


def _memory_type(name: str, scope: str, node: ast.Call) -> Type:
    names = [argument.id if isinstance(argument, ast.Name) else "" for argument in node.args]
    if names and names[0] == "pages":
        axes = [_axis(argument, ("head",), "memory-axes", _MEMORY[scope]) for argument in node.args[1:]]
        kind = SET
    else:
        axes = [_axis(argument, _MEMORY_AXES, "memory-axes", _MEMORY[scope]) for argument in node.args]
        kind = FLOAT
    if (kind == FLOAT and "page" not in axes) or len(set(axes)) != len(axes):
        raise place_of(node).error(
            "memory-axes",
            f"{name} keeps one number per page, or a set of pages",
            found=shown(node),
            expected=_MEMORY[scope],
            hint="name page, and head or channel where it keeps more than one number per page",
        )
    return Type(kind, ordered({*axes}))


def _period(node: ast.expr, knobs: Mapping[str, Knob]) -> int | KnobRef:
    knob = knobs.get(node.id) if isinstance(node, ast.Name) else None
    if knob is None:
        return whole_number(node, 1, MAX_PERIOD)
    numbers = [n for n in (*knob.choices, knob.low, knob.high) if n is not None]
    if not all(type(n) is int and 1 <= n <= MAX_PERIOD for n in numbers) or not numbers:
        raise place_of(node).error(
            "whole-number",
            "every= is a whole number, or a knob of them",
            found=", ".join(map(repr, numbers)) or knob.kind,
            expected=f"1 to {MAX_PERIOD}",
            hint="knob.int(1, 64, log=True, default=8)",
        )
    return KnobRef(knob.name)
