"""What the Triton kernels do not run yet: programs with it run on the torch executor."""

from __future__ import annotations

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Node, Program, Static

#: Operations that kernels are generated for.
OPS = frozenset({
    "const", "ctx", "k", "v", "q", "field",
    "neg", "abs", "exp", "log", "sqrt", "relu", "sigmoid", "silu", "tanh", "floor", "ceil", "float", "cast",
    "add", "sub", "mul", "div", "floordiv", "mod", "maximum", "minimum",
    "lt", "le", "eq", "ne", "and", "or", "not", "where",
    "split", "rename", "slice", "reduce", "dot", "softmax", "share",
    "everything", "first", "last", "stride", "random", "topk", "topp", "above",
    "union", "intersect", "difference", "complement",
})  # fmt: skip
_WORDS = {
    "param": "parameters",
    "memory": "memory",
    "reuse": "reuse",
    "attention": "an attention output of the program's own",
    "gather": "take",
    "scan": "running sums and extremes",
}


class NotCovered(VortexError):
    """A program has something that no kernel is generated for; `what` names each of them."""

    def __init__(self, program: Program, what: tuple[str, ...]):
        super().__init__(
            f"program {program.name}: the Triton kernels do not cover {', '.join(what)} yet; run it with --device cpu"
        )
        self.what = what


def uncovered(program: Program, static: Static) -> tuple[str, ...]:
    """What a step of the bound program needs beyond the kernels, in words; empty when they run it.

    Blocks of prefill queries select as steps do; what makes one query of a block's runs in torch and is not looked at.
    """
    found: dict[str, None] = {}
    for index in _stepping(program):
        word = _missing(program.nodes[index])
        if word:
            found[word] = None
    return tuple(sorted(found))


def check_coverage(program: Program, static: Static) -> None:
    """Raises `NotCovered` for a program that the kernels do not run."""
    missing = uncovered(program, static)
    if missing:
        raise NotCovered(program, missing)


def _stepping(program: Program) -> list[int]:
    """The live nodes without those that only stand for a block of prefill queries."""
    return [i for i in program.live() if program.nodes[i].stage != "pool"]


def _missing(node: Node) -> str:
    if node.op not in OPS:
        return _WORDS.get(node.op, node.op)
    if node.op == "ctx" and node.attrs["name"] == "position":
        return "ctx.position"
    return ""
