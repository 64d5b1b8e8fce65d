"""What is legal and probably not meant."""

from __future__ import annotations

from vortexlab.dsl.errors import Diagnostic
from vortexlab.dsl.ir import Program

_STATIC = ("first", "last", "stride", "everything")
_SCORED = ("topk", "topp", "above")


def warnings_of(program: Program, used: set[str]) -> list[Diagnostic]:
    """Warnings about unused summaries and knobs, and about budgets spent on pages that are read anyway (rule 4)."""
    found = []
    live = program.live_fields()
    for name, index in program.fields.items():
        if name not in live:
            node = program.nodes[index]
            found.append(_warn("unused-summary", f"summary {name} is never read", node.line, node.column,
                               "remove it, or use it in score"))  # fmt: skip
    for name in program.knobs:
        if name not in used and name != "page":
            found.append(_warn("unused-knob", f"knob {name} has no effect", 1, 1, "remove it, or use it"))
    for index in program.live():
        node = program.nodes[index]
        if node.op != "union":
            continue
        ops = {_below(program, side) for side in node.inputs}
        scored = [n for side in node.inputs for n in _leaves(program, side) if program.nodes[n].op in _SCORED]
        statics = any(op & set(_STATIC) for op in ops)
        for leaf in scored:
            chosen = program.nodes[leaf]
            full = {"topk": 3, "topp": 5, "above": 4}[chosen.op]
            if statics and len(chosen.inputs) < full:
                found.append(_warn(
                    "budget-on-forced", f"{chosen.op} may choose pages that a static pattern reads anyway", chosen.line,
                    chosen.column, "choose among the others: among=~(first(1) | last(2))"))  # fmt: skip
    unique = {(d.code, d.line, d.column, d.message): d for d in found}
    return list(unique.values())


def _leaves(program: Program, index: int) -> list[int]:
    node = program.nodes[index]
    if node.op in ("union", "intersect", "difference"):
        return [leaf for side in node.inputs for leaf in _leaves(program, side)]
    return [index]


def _below(program: Program, index: int) -> frozenset[str]:
    return frozenset(program.nodes[leaf].op for leaf in _leaves(program, index))


def _warn(code: str, message: str, line: int, column: int, hint: str) -> Diagnostic:
    return Diagnostic(code, message, line, column, hint=hint, severity="warning")
