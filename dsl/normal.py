"""Programs with everything removed that does not change their meaning: the form that hashes are taken of.

Live nodes become *terms*. Scalars made of constants alone are evaluated, differences are sums with a negative, set
algebra is written with union, intersection and complements of leaves, chains of associative operations are flattened
and their order is dropped, equal terms are one, and arithmetic that changes nothing (x * 1, x + 0) is left out. Names
stay behind as *marks*: a knob, a memory or an axis made by the program is only what uses it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from vortexlab.dsl.ir import FLOAT, POOL_STAGE, SET, Attr, Knob, KnobRef, Node, Program, Static
from vortexlab.dsl.ops import OPS
from vortexlab.dsl.scalars import scalar_value

_FIXED_AXES = ("page", "head", "query", "token", "channel")
_AXIS_ATTRS = {"split": ("axis", "name"), "rename": ("old", "new"), "merge": ("first", "second", "name"),
               "window": ("axis", "name")}  # fmt: skip
#: Attributes that are numbers: in a structure they are all alike.
_NUMBERS = ("size", "salt", "by", "fill", "every", "start", "stop")
#: Operand by operand: the number that leaves the other operand as it is.
_NEUTRAL = {"add": 0.0, "mul": 1.0}
#: Associative, commutative and idempotent: a chain of them is a set of operands.
_CHAINS = ("union", "intersect", "and", "or", "maximum", "minimum")
_DUAL = {"union": "intersect", "intersect": "union"}

Label = tuple[str, ...]
Mark = tuple[str, str, str]  # role, "knob", "axis" or "memory", name


@dataclass(frozen=True)
class Term:
    """`inputs` are indices of earlier terms; their order means something only where `is_ordered`."""

    label: Label
    inputs: tuple[int, ...] = ()
    is_ordered: bool = True
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class NormalForm:
    """`output` is the term that everything a program gives hangs from. `page` is the page size and `block` that of a
    block of prefill queries, if there is one, as a text or as a mark."""

    terms: tuple[Term, ...]
    output: int
    page: str | Mark
    block: str | Mark | None
    knobs: Mapping[str, Knob]
    has_random: bool
    has_summaries: bool
    has_params: bool

    @property
    def sizes(self) -> list[Mark]:
        """Page and block, as far as knobs decide them."""
        return [size for size in (self.page, self.block) if isinstance(size, tuple)]


def normal_form(program: Program, *, blank: bool = False) -> NormalForm:
    """The normal form of a bound or unbound program.

    With `blank` every number is the same number, whether it stands in the text, in a knob or in arithmetic on both,
    and a choice made by a knob is the same choice: what is left is the structure.
    """
    builder = _Builder(program, blank)
    live = program.live()
    for index in live:
        builder.place[index] = builder.term(index, program.nodes[index])
    page = _size("page", program.page, blank)
    block = None if program.pooled is None or program.block is None else _size("block", program.block, blank)
    return _pruned(builder, builder.root(), page, block)


def _size(role: str, value: int | KnobRef, blank: bool) -> str | Mark:
    if blank:
        return "number"
    return (role, "knob", value.name) if isinstance(value, KnobRef) else str(value)


def _pruned(builder: _Builder, output: int, page: str | Mark, block: str | Mark | None) -> NormalForm:
    """Only what the output still reads: rewriting leaves terms behind."""
    needed: set[int] = set()
    stack = [output]
    while stack:
        index = stack.pop()
        if index not in needed:
            needed.add(index)
            stack.extend(builder.terms[index].inputs)
    order = {old: new for new, old in enumerate(sorted(needed))}
    terms = tuple(
        Term(t.label, tuple(order[i] for i in t.inputs), t.is_ordered, t.marks)
        for t in (builder.terms[old] for old in sorted(needed))
    )
    ops = {term.label[0] for term in terms}
    facts = ("random" in ops, "field" in ops, "param" in ops)
    return NormalForm(terms, order[output], page, block, builder.program.knobs, *facts)


class _Builder:
    def __init__(self, program: Program, blank: bool):
        self.program = program
        self.blank = blank
        self.terms: list[Term] = []
        self.place: dict[int, int] = {}
        self._seen: dict[Term, int] = {}
        self._complements: dict[int, int] = {}
        self._constant = _constants(program, blank)

    def add(self, term: Term) -> int:
        if term not in self._seen:
            self._seen[term] = len(self.terms)
            self.terms.append(term)
        return self._seen[term]

    def term(self, index: int, node: Node) -> int:
        if index in self._constant:
            return self.add(Term(("number",))) if self.blank else self._number(index)
        op = node.op
        if op == "field":
            return self.add(Term((op,), (self.place[self.program.fields[str(node.attrs["name"])]],)))
        if op in ("param", "memory"):
            return self.add(self._param(node) if op == "param" else self._memory("memory", str(node.attrs["name"])))
        if op == "q" and node.stage == POOL_STAGE:
            return self.add(Term(("q", POOL_STAGE)))
        inputs = tuple(self.place[i] for i in node.inputs)
        if node.type.kind == FLOAT and OPS[op].group in ("unary", "binary"):
            inputs = tuple(self._float(i) for i in inputs)
        unchanged = self._unchanged(node, inputs)
        if unchanged is not None:
            return unchanged
        if op == "neg":
            return self._negative(inputs[0])
        if op == "sub":
            op, inputs = "add", (inputs[0], self._negative(inputs[1]))
        if op == "where" and self.terms[inputs[0]].label == ("not",):
            inputs = (self.terms[inputs[0]].inputs[0], inputs[2], inputs[1])
        if op == "complement":
            return self._complement(inputs[0])
        if op == "difference":
            return self._chain("intersect", (inputs[0], self._complement(inputs[1])))
        if op in _CHAINS:
            return self._chain(op, inputs)
        if op == "where" and not self.blank and node.inputs[0] in self._constant:
            chosen = node.inputs[1 if self._value(node.inputs[0]) else 2]
            if self.program.nodes[chosen].type == node.type:
                return self.place[chosen]
        spec = OPS[op]
        if op == "index" and node.attrs["axis"] == "page":
            inputs = ()
        has_among = spec.group == "selector" and len(inputs) == spec.arity[1] > spec.arity[0]
        if has_among and self.terms[inputs[-1]].label == ("everything",):
            inputs = inputs[:-1]
        ordered = not spec.commutative
        label, marks = self._attrs(op, node.attrs)
        return self.add(Term((op, *label), inputs if ordered else tuple(sorted(inputs)), ordered, marks))

    def _attrs(self, op: str, attrs: Mapping[str, Attr | KnobRef]) -> tuple[Label, tuple[Mark, ...]]:
        label: list[str] = []
        marks: list[Mark] = []
        for key in sorted(attrs):
            value = attrs[key]
            if key in _AXIS_ATTRS.get(op, ("axis",)) and value not in _FIXED_AXES:
                marks.append((key, "axis", str(value)))
            elif key in ("name", "new") and op in _AXIS_ATTRS:
                label.append(f"{key}={value!r}")
            elif op == "knob":
                marks.append((key, "knob", str(value)))
            elif self.blank and (isinstance(value, KnobRef) or (key in _NUMBERS and not isinstance(value, str))):
                label.append(f"{key}=*")
            elif isinstance(value, KnobRef):
                marks.append((key, "knob", value.name))
            else:
                label.append(f"{key}={value!r}")
        return tuple(label), tuple(marks)

    def root(self) -> int:
        """What a program gives: the selected set alone, or with it attention, a pooled query and what it writes."""
        program = self.program
        named = {"output": program.output, "result": program.result, "pooled": program.pooled}
        parts = {name: self.place[index] for name, index in named.items() if index is not None}
        writes = [
            self.add(replace(self._memory("write", name), inputs=(self.place[index],)))
            for name, index in program.live_memories().items()
        ]
        if writes:
            parts["writes"] = self.add(Term(("writes",), tuple(sorted(writes)), False))
        if len(parts) == 1:
            return parts["output"]
        return self.add(Term(("program", *parts), tuple(parts.values())))

    def _param(self, node: Node) -> Term:
        """A learned constant is the tensor of the file; the axes that the program makes are told by their places."""
        param = self.program.params[str(node.attrs["name"])]
        made = [(f"axis{at}", "axis", axis) for at, axis in enumerate(param.axes) if axis not in _FIXED_AXES]
        axes = [axis if axis in _FIXED_AXES else str(param.sizes[axis]) for axis in param.axes]
        flags = [name for name in ("per_layer", "per_kv_head") if getattr(param, name)]
        return Term(("param", param.tensor, param.kind, *axes, *flags), (), True, tuple(made))

    def _memory(self, op: str, name: str) -> Term:
        """A read or a write of a memory, which is known by what it is and by who reads and writes it."""
        memory = self.program.memories[name]
        marks: list[Mark] = [(op, "memory", name)]
        label = [op, memory.scope, str(memory.type)]
        if not self.blank:
            label.append(memory.init.hex())
            if isinstance(memory.every, KnobRef):
                marks.append(("every", "knob", memory.every.name))
            else:
                label.append(str(memory.every))
        return Term(tuple(label), (), True, tuple(marks))

    def _unchanged(self, node: Node, inputs: tuple[int, ...]) -> int | None:
        """The operand that arithmetic without effect gives back: x * 1, x + 0, x - 0, x / 1, a whole slice, ..."""
        op, nodes = node.op, self.program.nodes
        if op == "not" and self.terms[inputs[0]].label == ("not",):
            return self.terms[inputs[0]].inputs[0]
        if op == "where" and inputs[1] == inputs[2] and nodes[node.inputs[1]].type == node.type:
            return inputs[1]
        if self.blank:
            return None
        if op == "cast" and node.attrs["dtype"] == "fp32":
            return inputs[0]
        if op == "slice" and node.attrs["start"] == 0 and node.attrs["stop"] is None:
            return inputs[0]
        kept = None
        if op in _NEUTRAL:
            kept = next((1 - at for at in (0, 1) if self._is(inputs[at], _NEUTRAL[op])), None)
        elif op in ("sub", "div"):
            kept = 0 if self._is(inputs[1], 0.0 if op == "sub" else 1.0) else None
        if kept is None:
            return None
        same = nodes[node.inputs[kept]].type.kind == node.type.kind
        return inputs[kept] if same else self.add(Term(("float",), (inputs[kept],)))

    def _is(self, index: int, value: float) -> bool:
        label = self.terms[index].label
        if label[0] != "const" or label[1] not in ("int", "float") or label[2] == "nan":
            return False
        return (float(int(label[2])) if label[1] == "int" else float.fromhex(label[2])) == value

    def _value(self, index: int) -> int | float | bool:
        return scalar_value(self.program, index, Static(1, 1, 1, 1.0), None)

    def _number(self, index: int) -> int:
        value = self._value(index)
        if isinstance(value, float):
            text = "nan" if math.isnan(value) else (value + 0.0).hex()  # adding 0.0 makes one zero of the two
        else:
            text = str(value)
        return self.add(Term(("const", type(value).__name__, text)))

    def _float(self, index: int) -> int:
        """An int constant among floats is the float of its value."""
        label = self.terms[index].label
        return (
            self.add(Term(("const", "float", float(int(label[2])).hex()))) if label[:2] == ("const", "int") else index
        )

    def _negative(self, index: int) -> int:
        label = self.terms[index].label
        if label == ("neg",):
            return self.terms[index].inputs[0]
        if label[:2] == ("const", "int"):
            return self.add(Term(("const", "int", str(-int(label[2])))))
        if label[:2] == ("const", "float") and label[2] != "nan":
            return self.add(Term(("const", "float", (0.0 - float.fromhex(label[2])).hex())))
        return index if label == ("number",) else self.add(Term(("neg",), (index,)))

    def _complement(self, index: int) -> int:
        if index not in self._complements:  # a set used twice is complemented once, or the work doubles per level
            term = self.terms[index]
            if term.label == ("complement",):
                made = term.inputs[0]
            elif term.label[0] in _DUAL:
                made = self._chain(_DUAL[term.label[0]], tuple(self._complement(i) for i in term.inputs))
            else:
                made = self.add(Term(("complement",), (index,)))
            self._complements[index] = made
        return self._complements[index]

    def _chain(self, op: str, inputs: tuple[int, ...]) -> int:
        operands: set[int] = set()
        for index in inputs:
            term = self.terms[index]
            operands.update(term.inputs if term.label == (op,) else (index,))
        whole = {i for i in operands if self.terms[i].label == ("everything",)}
        if whole and op == "union":
            return whole.pop()
        if whole and op == "intersect" and len(operands) > 1:
            operands -= whole
        if len(operands) == 1:
            return operands.pop()
        return self.add(Term((op,), tuple(sorted(operands)), False))


def _constants(program: Program, blank: bool) -> frozenset[int]:
    """Scalars made of constants alone; of constants and knobs where numbers are blanked."""
    leaves = ("const", "knob") if blank else ("const",)
    found: set[int] = set()
    for index, node in program:
        if node.op in leaves or (
            node.inputs and not node.type.axes and node.type.kind != SET and all(i in found for i in node.inputs)
        ):
            found.add(index)
    return frozenset(found)
