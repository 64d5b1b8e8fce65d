"""What a bound program's form says about how it must be measured."""

from __future__ import annotations

from dataclasses import replace

from vortexlab.dsl.ir import SET, Node, Program, Type
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
    """Whether different layers may read different numbers of pages."""
    return any(
        node.op == "ctx" and node.attrs["name"] in ("layer", "layers")
        for node in (program.nodes[index] for index in program.live())
    )


def forced_part(program: Program) -> Program:
    """The program with every selector that looks at scores, or at chance, choosing nothing: what is read regardless."""
    zero = Node("const", Type("int"), attrs={"value": 0})

    def shifted(node: Node) -> Node:
        if node.op in _SCORED:
            return Node("first", Type(SET), (0,), {}, node.stage, node.line, node.column)
        return replace(node, inputs=tuple(i + 1 for i in node.inputs))

    return replace(
        program,
        nodes=(zero, *(shifted(node) for node in program.nodes)),
        fields={name: index + 1 for name, index in program.fields.items()},
        output=program.output + 1,
    )
