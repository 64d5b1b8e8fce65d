"""What a bound program's form says about how it must be measured."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

from vortexlab.dsl.ir import SET, Node, Program, Type, ordered
from vortexlab.dsl.scalars import is_exact

_SCORED = ("topk", "topp", "above", "random")


def depends_on_data(program: Program) -> bool:
    """Whether the number of pages that a step reads can depend on keys, values or queries.

    It cannot where one selector at most looks at scores, takes an exact count, and only static sets stand beside it.
    """
    choosers = 0
    for index in program.live():
        node = program.nodes[index]
        if node.type.kind != SET:
            continue
        choosers += node.op in _SCORED
        numbers = [i for i in node.inputs if program.nodes[i].type.kind != SET and not program.nodes[i].type.axes]
        if node.op in ("topp", "above") or not all(is_exact(program, i) for i in numbers):
            return True
    return choosers > 1


def depends_on_layer(program: Program) -> bool:
    """Whether different layers may read different numbers of pages, or pass something on to the next one."""
    return any(
        (node.op == "ctx" and node.attrs["name"] in ("layer", "layers"))
        or (node.op == "reuse" and node.attrs["over"] == "layers")
        or (node.op == "memory" and program.memories[str(node.attrs["name"])].scope == "layer")
        for node in (program.nodes[index] for index in program.live())
    )


def _periods(program: Program) -> set[int]:
    """Every how many steps something that the program keeps is renewed."""
    live = program.live()
    spans = {int(program.nodes[i].attrs["every"]) for i in live if program.nodes[i].attrs.get("over") == "steps"}  # type: ignore[arg-type]
    return spans | {int(program.memories[name].every) for name in program.live_memories()}  # type: ignore[arg-type]


def period(program: Program) -> int:
    """After how many steps a program does the same work again: what it renews every n steps makes steps differ."""
    return math.lcm(*_periods(program))


def kinds_of_step(program: Program, length: int) -> list[tuple[int, float]]:
    """Lengths of contexts whose steps stand for all up to `length`, which comes last, and the share of each.

    Steps that renew the same things do the same work. What comes less than once in half the context is left out: it is
    too rare to count.
    """
    periods = _periods(program)
    half = max(1, length // 2)
    span = math.lcm(*periods)
    window = half // span * span or half
    longest: dict[tuple[int, ...], int] = {}
    found: Counter[tuple[int, ...]] = Counter()
    for at in range(length, length - window, -1):
        due = tuple(n for n in periods if (at - 1) % n == 0)
        longest.setdefault(due, at)
        found[due] += 1
    return sorted((longest[due], count / window) for due, count in found.items())


def without_oracle(program: Program) -> str:
    """Why nothing can be said of the best choice of as many pages as a bound program reads (`evaluator.oracle`), in
    words; empty where it can."""
    if not any(program.nodes[index].op in _SCORED for index in program.live()):
        return "it chooses no page by a score"
    if "head" in program.nodes[program.output].type.axes:
        return "it chooses for every query head by itself"
    if program.has_memory:
        return "what it reads depends on earlier steps or layers"
    if program.result is not None:
        return "it computes its output by itself"
    return ""


def forced_part(program: Program) -> Program:
    """The program with every selector that looks at scores, or at chance, or at what was chosen before, choosing
    nothing: what is read regardless."""
    nodes = [Node("const", Type("int"), attrs={"value": 0})]
    for node in program.nodes:
        if node.op in _SCORED or node.op == "reuse" or (node.op == "memory" and node.type.kind == SET):
            nodes.append(Node("first", Type(SET), (0,), {}, node.stage, node.line, node.column))
            continue
        inputs, type_ = tuple(i + 1 for i in node.inputs), node.type
        if type_.kind == SET:  # a list for every query head came from a selector that is gone
            type_ = Type(SET, ordered({axis for i in inputs for axis in nodes[i].type.axes if axis == "head"}))
        nodes.append(replace(node, inputs=inputs, type=type_))
    return replace(
        program,
        nodes=tuple(nodes),
        fields={name: index + 1 for name, index in program.fields.items()},
        output=program.output + 1,
        result=None,
        pooled=None,
        block=None,
        writes={name: index + 1 for name, index in program.writes.items()},
    )
