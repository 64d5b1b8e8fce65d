"""What the Triton kernels do not run yet: programs with it run on the torch executor."""

from __future__ import annotations

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import SET, Node, Program, Static
from vortexlab.kernels.compiled import is_plain, operands_of

#: Operations that kernels are generated for.
OPS = frozenset({
    "const", "ctx", "k", "v", "q", "field",
    "neg", "abs", "exp", "log", "sqrt", "relu", "sigmoid", "silu", "tanh", "floor", "ceil", "float", "cast",
    "add", "sub", "mul", "div", "floordiv", "mod", "maximum", "minimum",
    "lt", "le", "eq", "ne", "and", "or", "not", "where",
    "split", "rename", "slice", "reduce", "dot", "softmax", "share",
    "everything", "first", "last", "stride", "random", "topk", "topp", "above",
    "union", "intersect", "difference", "complement",
    "index", "member", "attention", "param",
})  # fmt: skip
_WORDS = {
    "memory": "memory",
    "reuse": "reuse",
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
    for word in (*_of_choice(program), *_output(program, static)):
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


def _of_choice(program: Program) -> list[str]:
    """What is missing of numbers that depend on a choice: they exist in the selection kernel alone."""
    nodes, found = program.nodes, []
    reached: set[int] = set()
    attended: set[int] = set()
    for index in _stepping(program):
        node = nodes[index]
        if node.op == "attention" or any(i in attended for i in node.inputs):
            attended.add(index)
            if node.op != "attention" and any(i in reached for i in node.inputs):
                found.append("member in gates of the output")
        elif node.op == "member":
            reached.add(index)
            if node.type.axes != ("page",):
                found.append("member of a set per query head")
        elif node.type.kind != SET and any(i in reached for i in node.inputs):
            reached.add(index)
            if node.op == "share" or not set(node.type.axes) <= {"page", "head"}:
                found.append("member beside other axes than page and head")
    return found


def _output(program: Program, static: Static) -> list[str]:
    """What is missing of an attention output of the program's own."""
    if is_plain(program):
        return []
    nodes, found = program.nodes, []
    if static.latent:
        found.append("an attention output of the program's own over latent keys")
    for index in _stepping(program):
        if nodes[index].op != "attention":
            continue
        given = operands_of(nodes[index], nodes[index].inputs)
        if any(name in given and nodes[given[name]].op != "field" for name in ("keys", "values")):
            found.append("entries that are no summaries as they are stored")
        weights = [given[name] for name in ("log_weight", "entry_log_weight") if name in given]
        if not all(set(nodes[part].type.axes) <= {"page", "head"} for part in weights):
            found.append("log-weights along an axis of the entries")
    return found
