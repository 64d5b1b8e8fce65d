"""Warnings: what is legal and probably not meant."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from vortexlab.dsl.errors import Diagnostic
from vortexlab.dsl.ir import FP8, KnobRef, Program, Static
from vortexlab.dsl.outline import Outline
from vortexlab.dsl.places import Place
from vortexlab.dsl.scalars import scalar_value

_STATIC = ("first", "last", "stride", "everything")
#: Selectors that choose among candidates, with their number of inputs before `among`.
_CHOOSING = {"topk": 2, "topp": 4, "above": 3, "random": 1}
_LARGEST = {"fp16": 65504.0, "fp8_e4m3": 448.0, "fp8_e5m2": 57344.0}
#: Ops whose result is one of their inputs, up to sign.
_PASSING = (
    "where", "maximum", "minimum", "neg", "abs", "float", "cast", "split", "merge", "rename", "slice", "concat", "sort",
)  # fmt: skip


def unused_names(
    program: Program,
    outline: Outline,
    returned: Mapping[str, Mapping[str, Place]],
    used: set[str],
    variables: Iterable[tuple[str, Place]],
) -> list[Diagnostic]:
    """Summaries, scores, knobs, constants and variables that the selection does not depend on.

    `returned` are the names that each method returns, with their places; `used` what was read anywhere.
    """
    found = []
    for name, place in returned.get("summarize", {}).items():
        if name not in program.fields:
            text = f"the selection does not depend on summary {name}"
            hint = f"use s.{name}, or remove {name}= from summarize"
            found.append(_warning("unused-summary", text, place, hint))
    for name, place in returned.get("score", {}).items():
        if f"score.{name}" not in used:
            hint = f"use score.{name}, or remove {name}= from score"
            found.append(_warning("unused-score", f"nothing reads score.{name}", place, hint))
    for name in outline.memories:
        if name not in program.memories:
            text = f"neither the selection nor the output depends on the memory {name}"
            hint = f"read m.{name} in score, select or attend, or remove the memory"
            found.append(_warning("unused-memory", text, outline.places[name], hint))
    for name in outline.params:
        if name not in program.params:
            text, hint = f"nothing depends on the parameter {name}", f"use {name} in a method, or remove it"
            found.append(_warning("unused-param", text, outline.places[name], hint))
    live = {str(node.attrs["name"]) for node in program.nodes if node.op == "knob"}
    live |= {v.name for node in program.nodes for v in node.attrs.values() if isinstance(v, KnobRef)}
    live |= {item.every.name for item in program.memories.values() if isinstance(item.every, KnobRef)}
    live |= {item.name for item in (program.page, program.block) if isinstance(item, KnobRef)}
    for name in outline.knobs:
        if name not in live:
            text, hint = f"the selection does not depend on knob {name}", f"use {name} in a method, or remove it"
            found.append(_warning("unused-knob", text, outline.places[name], hint))
    for name in outline.constants:
        if name not in used:
            found.append(_warning("unused-variable", f"nothing reads {name}", outline.places[name]))
    for name, place in variables:
        found.append(_warning("unused-variable", f"nothing reads {name}", place))
    return found


def early_reuse(program: Program) -> list[Diagnostic]:
    """Rule 8: sets reused from a lower layer that the lowest layer, with the default knobs, does not make."""
    values = program.defaults
    bound = replace(
        program,
        page=int(values[program.page.name]) if isinstance(program.page, KnobRef) else program.page,  # type: ignore[arg-type]
        nodes=tuple(
            replace(node, op="const", attrs={"value": values[str(node.attrs["name"])]}) if node.op == "knob" else node
            for node in program.nodes
        ),
    )
    lowest = Static(kv_heads=8, group=4, head_dim=128, scale=0.1, layer=0, layers=32)
    found = []
    for _, node in bound:
        if node.op == "reuse" and node.attrs["over"] == "layers" and not scalar_value(bound, node.inputs[1], lowest, 1):
            found.append(
                Diagnostic(
                    "reuse-before-write",
                    "layer 0 reuses a set that no layer below it has made",
                    node.line,
                    node.column,
                    found="a condition that does not hold where ctx.layer is 0",
                    expected="a condition that holds in layer 0",
                    hint="add the first layer: layers=(ctx.layer == 0) or ..., or ctx.layer % n == 0",
                )
            )
    return found


def spent_on_forced(program: Program) -> list[Diagnostic]:
    """Rule 4: selectors whose budget may go to pages that a static pattern of the same union reads anyway."""
    found = []
    for members in _unions(program):
        forced = {i for i in members if program.nodes[i].op in _STATIC and not _is_never_candidate(program, i)}
        for index in members:
            node = program.nodes[index]
            if node.op not in _CHOOSING:
                continue
            among = node.inputs[_CHOOSING[node.op] :]
            if forced - (_excluded(program, among[0]) if among else set()):
                found.append(
                    Diagnostic(
                        "budget-on-forced",
                        f"{node.op} may choose pages that are read anyway",
                        node.line,
                        node.column,
                        found=f"no `among` that leaves out {', '.join(sorted({program.nodes[i].op for i in forced}))}",
                        expected="a choice among the other pages",
                        hint="forced = first(sink) | last(recent); return forced | topk(score, n, among=~forced)",
                        severity="warning",
                    )
                )
    return found


def out_of_range(program: Program) -> list[Diagnostic]:
    """Numbers that pass unchanged into a cast, or into a stored summary, that cannot hold them."""
    casts = [(i, str(node.attrs["dtype"])) for i, node in program if node.op == "cast"]
    casts += [(i, program.summary_dtype) for i in program.live_fields().values()]
    found = []
    for index, dtype in casts:
        largest = _LARGEST.get(dtype, math.inf)
        for i in _passed_on(program, index):
            node = program.nodes[i]
            value = abs(node.attrs["value"])  # type: ignore[arg-type]
            if value > largest:
                becomes = f"saturates at {largest:g}" if dtype in FP8 else "becomes infinite"
                found.append(
                    Diagnostic(
                        "dtype-overflow",
                        f"{value:g} {becomes} in {dtype}",
                        node.line,
                        node.column,
                        found=f"{value:g}",
                        expected=f"at most {largest:g} in size",
                        hint="choose a smaller number, or bf16 or fp32",
                        severity="warning",
                    )
                )
    return found


def _passed_on(program: Program, index: int) -> set[int]:
    """The constants that a value may be equal to, up to sign."""
    found, seen, stack = set(), set(), [index]
    while stack:
        i = stack.pop()
        node = program.nodes[i]
        if i in seen:
            continue
        seen.add(i)
        if node.op == "const" and not isinstance(node.attrs["value"], bool):
            found.add(i)
        elif node.op in _PASSING:
            stack.extend(node.inputs[1:] if node.op == "where" else node.inputs)
    return found


def whole_budgets(program: Program) -> list[Diagnostic]:
    """topk and random with a budget of all pages, topp with a mass above 1: a choice that leaves nothing out."""
    found = []
    for _, node in program:
        if node.op == "topp":
            mass = program.nodes[node.inputs[1]]
            mass = program.nodes[mass.inputs[0]] if mass.op == "float" else mass
            value = mass.attrs["value"] if mass.op == "const" else 0
            if value > 1:  # type: ignore[operator]
                found.append(
                    Diagnostic(
                        "whole-budget",
                        "topp may choose every page",
                        node.line,
                        node.column,
                        found=f"a mass of {value:g}",
                        expected="a mass of at most 1",
                        hint="a mass is a share, not percent: 0.95",
                        severity="warning",
                    )
                )
        if node.op not in ("topk", "random"):
            continue
        count = program.nodes[node.inputs[_CHOOSING[node.op] - 1]]
        if count.op == "ctx" and count.attrs["name"] in ("pages", "length", "position"):
            found.append(
                Diagnostic(
                    "whole-budget",
                    f"{node.op} may choose every page",
                    node.line,
                    node.column,
                    found=f"a budget of ctx.{count.attrs['name']}",
                    expected="a budget below the number of pages",
                    hint="write a share of them, floor(0.1 * ctx.pages), or everything() for a dense layer",
                    severity="warning",
                )
            )
    return found


def _unions(program: Program) -> list[set[int]]:
    """The members of every largest union."""
    inner = {i for node in program.nodes if node.op == "union" for i in node.inputs if program.nodes[i].op == "union"}
    return [_members(program, i) for i, node in program if node.op == "union" and i not in inner]


def _members(program: Program, index: int) -> set[int]:
    found, stack = set(), [index]
    while stack:
        i = stack.pop()
        if program.nodes[i].op == "union":
            stack.extend(program.nodes[i].inputs)
        elif program.nodes[i].op == "reuse":
            stack.append(program.nodes[i].inputs[0])
        else:
            found.add(i)
    return found


def _excluded(program: Program, index: int) -> set[int]:
    """Sets that `among` plainly leaves out."""
    node = program.nodes[index]
    if node.op == "complement":
        return _members(program, node.inputs[0])
    if node.op == "difference":
        return _excluded(program, node.inputs[0]) | _members(program, node.inputs[1])
    if node.op == "intersect":
        return _excluded(program, node.inputs[0]) | _excluded(program, node.inputs[1])
    if node.op in _CHOOSING and len(node.inputs) > _CHOOSING[node.op]:
        return _excluded(program, node.inputs[-1])
    return set()


def _is_never_candidate(program: Program, index: int) -> bool:
    """first(0), last(0) and last(1): nothing, or the own page alone."""
    node = program.nodes[index]
    count = program.nodes[node.inputs[0]] if node.inputs else None
    if count is None or count.op != "const":
        return False
    number = count.attrs["value"]
    assert isinstance(number, int)
    return number <= (1 if node.op == "last" else 0) and node.op in ("first", "last")


def _warning(code: str, message: str, place: Place, hint: str = "remove it, or use it") -> Diagnostic:
    return Diagnostic(code, message, place.line, place.column, hint=hint, severity="warning")
