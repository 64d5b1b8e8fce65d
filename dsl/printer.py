"""Writes a program back as text: `parse(to_source(p))` has the canonical hash of `p`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from vortexlab.dsl.ir import SET, Attr, Knob, KnobRef, Memory, Node, Param, Program
from vortexlab.dsl.surface import WORDS
from vortexlab.dsl.words import FUNCTIONS, METHOD_PARAMETERS, PARAMETERS

# How tightly Python binds: an operand gets brackets when it binds less tightly than its place asks for.
_OR, _AND, _NOT, _COMPARE, _BITOR, _BITAND, _SUM, _PRODUCT, _SIGN, _ATOM = range(10)
_INFIX = {
    "add": ("+", _SUM), "sub": ("-", _SUM), "mul": ("*", _PRODUCT), "div": ("/", _PRODUCT),
    "floordiv": ("//", _PRODUCT), "mod": ("%", _PRODUCT), "and": ("and", _AND), "or": ("or", _OR),
    "union": ("|", _BITOR), "intersect": ("&", _BITAND), "difference": ("-", _SUM),
    "lt": ("<", _COMPARE), "le": ("<=", _COMPARE), "eq": ("==", _COMPARE), "ne": ("!=", _COMPARE),
}  # fmt: skip
_PREFIX = {"neg": ("-", _SIGN), "complement": ("~", _SIGN), "not": ("not ", _NOT)}
#: Arguments by position, then by keyword; a last input beyond these is `among`.
_ARGUMENTS = {
    "topk": (2, ()), "topp": (2, ("scale", "max")), "above": (2, ("max",)), "random": (1, ()),
    "stride": (1, ("offset",)),
}  # fmt: skip
_METHODS = ("merge", "slice", "window", "shift", "gather", "scan", "sort", "argmax", "index")
_LEAVES = ("const", "knob", "ctx", "field", "k", "v", "q", "param", "memory", "index", "everything")
_LONG = 72

Text = tuple[str, int]


def to_source(program: Program) -> str:
    """The program as a file, knobs included; a bound program prints its numbers. Dead code is left out."""
    lines = ["from vortexlab.dsl import *", "", "", f"@program({_options(program)})", f"class {program.name}:"]
    lines += _docstring(program.doc)
    options = {value.name for value in (program.page, program.block) if isinstance(value, KnobRef)}
    knobs = [knob for knob in program.knobs.values() if knob.name not in options]
    declared = [f"    {knob.name} = {_declaration(knob)}" for knob in knobs]
    declared += [f"    {param.name} = {_param(param)}" for param in program.params.values()]
    declared += [f"    {memory.name} = {_memory(memory)}" for memory in program.memories.values()]
    lines += [*declared, ""] if declared else []
    fields = program.live_fields()
    if fields:
        lines += _Method(program, {}).lines("summarize", list(fields.values()), list(fields))
    if program.pooled is not None:
        lines += _Method(program, {}).lines("pool", [program.pooled], [])
    handed = _handed(program)
    given = {index: f"score.{_letters(n)}" for n, index in enumerate(handed)}
    if len(handed) == 1:
        given = {handed[0]: "score"}
    if handed:
        keys = [] if len(handed) == 1 else [name.removeprefix("score.") for name in given.values()]
        lines += _Method(program, {}).lines("score", handed, keys)
    lines += _Method(program, given).lines("select", [program.output], [])
    given = {**given, program.output: "pages"}
    if program.result is not None:
        lines += _Method(program, given).lines("attend", [program.result], [])
    writes = program.live_memories()
    if writes:
        lines += _Method(program, given).lines("remember", list(writes.values()), list(writes))
    return "\n".join(lines).rstrip() + "\n"


def _handed(program: Program) -> list[int]:
    """What `score` hands to `select`: values that depend on q or a summary, though on no set of pages, where they meet
    what depends on one."""
    needed = _Method(program, {}).needed([program.output])
    scored: set[int] = set()
    chosen: set[int] = set()
    for index in needed:
        node = program.nodes[index]
        if node.type.kind == SET or any(i in chosen for i in node.inputs):
            chosen.add(index)
        elif node.op in ("q", "field") or any(i in scored for i in node.inputs):
            scored.add(index)
    return sorted({i for index in chosen for i in program.nodes[index].inputs if i in scored})


def _letters(number: int) -> str:
    return f"a{number + 1}"


class _Method:
    """Writes one method. `given` are nodes that are there already, under a name."""

    def __init__(self, program: Program, given: Mapping[int, str]):
        self.program = program
        self.text: dict[int, Text] = {index: (name, _ATOM) for index, name in given.items()}
        self.given = given
        self.parameters: set[str] = set()
        self.taken = {*program.knobs, *program.params, *program.memories, *WORDS, *PARAMETERS, *FUNCTIONS}
        for node in program.nodes:
            self.taken.update(node.type.axes)
        self.count = 0

    def lines(self, name: str, results: Sequence[int], keys: Sequence[str]) -> list[str]:
        nodes = self.needed(results)
        uses = Counter(i for index in nodes for i in self.program.nodes[index].inputs)
        uses.update(results)
        body = []
        for index in nodes:
            node = self.program.nodes[index]
            text, binding = self._expression(node)
            is_leaf = node.op in _LEAVES and not node.inputs
            if not is_leaf and (uses[index] > 1 or (len(text) > _LONG and index not in results)):
                local = self._local(node)
                body.append(f"        {local} = {text}")
                text, binding = local, _ATOM
            self.text[index] = (text, binding)
        self.parameters.update(self.given[i].split(".")[0] for i in self._reached if i in self.given)
        values = [self.text[i][0] for i in results]
        if keys:
            values = [f"dict({', '.join(f'{key}={value}' for key, value in zip(keys, values, strict=True))})"]
        order = [parameter for parameter in METHOD_PARAMETERS[name] if parameter in self.parameters]
        return [f"    def {name}({', '.join(order)}):", *body, f"        return {values[0]}", ""]

    def needed(self, results: Sequence[int]) -> list[int]:
        """What the results are made of, in order, as far as it is not given."""
        self._reached: set[int] = set()
        stack = list(results)
        while stack:
            index = stack.pop()
            if index not in self._reached:
                self._reached.add(index)
                if index not in self.given:
                    stack.extend(self.program.nodes[index].inputs)
        return sorted(self._reached - set(self.given))

    def _local(self, node: Node) -> str:
        stem = "pages" if node.type.kind == SET else "x" if node.type.axes else "n"
        while True:
            self.count += 1
            if f"{stem}{self.count}" not in self.taken:
                return f"{stem}{self.count}"

    def _expression(self, node: Node) -> Text:
        op, attrs = node.op, node.attrs
        if op in _LEAVES and not node.inputs:
            return self._leaf(node)
        parts = [self.text[i] for i in node.inputs]
        if op in _INFIX:
            sign, level = _INFIX[op]
            # Comparisons do not chain, so both of their sides are bound more tightly.
            left = _in(parts[0], level + (level == _COMPARE))
            return f"{left} {sign} {_in(parts[1], level + 1)}", level
        if op in _PREFIX:
            sign, level = _PREFIX[op]
            return sign + _in(parts[0], level), level
        values = [text for text, _ in parts]
        owner = _in(parts[0], _ATOM) if parts else ""
        if op == "reduce":
            how, axis = attrs["how"], attrs["axis"]
            return (
                f"{owner}.reduce({how.name}, {axis})" if isinstance(how, KnobRef) else f"{owner}.{how}({axis})"
            ), _ATOM
        if op == "split":
            return f"{owner}.split({attrs['axis']}, {attrs['name']}={_attr(attrs['size'])})", _ATOM
        if op == "rename":
            return f"{owner}.rename({attrs['old']}, {attrs['new']})", _ATOM
        if op == "cast":
            return f"{owner}.to({_attr(attrs['dtype'])})", _ATOM
        if op in _METHODS:
            return f"{owner}.{self._method(node, values)}", _ATOM
        if op == "share":
            values.append(_attr(attrs["how"]))
        elif op in ("dot", "concat"):
            values.append(str(attrs["axis"]))
        elif op == "reuse":
            values[1:] = [f"every={_attr(attrs['every'])}" if attrs["over"] == "steps" else f"layers={values[1]}"]
        elif op == "attention":
            parts_named = zip(str(attrs["parts"]).split(), values, strict=True)
            values = [value if name == "pages" else f"{name}={value}" for name, value in parts_named]
        elif op == "softmax":
            values.append("page")
        elif op in _ARGUMENTS:
            count, keywords = _ARGUMENTS[op]
            extra = (*keywords, "among")[: len(values) - count]
            values[count:] = [f"{key}={value}" for key, value in zip(extra, values[count:], strict=True)]
            if op == "random":
                values.append(f"salt={attrs['salt']}")
        return f"{op}({', '.join(values)})", _ATOM

    def _method(self, node: Node, values: list[str]) -> str:
        """A method of a value that moves or orders what it holds."""
        op, attrs = node.op, node.attrs
        axis = str(attrs.get("axis"))
        fill = [f"fill={_attr(attrs['fill'])}"] if attrs.get("fill") else []
        if op == "merge":
            return f"merge({attrs['first']}, {attrs['second']}, into={attrs['name']})"
        if op == "slice":
            bounds = [self._bound(attrs[key]) for key in ("start", "stop") if attrs[key] is not None]
            return f"slice({', '.join([axis, *bounds])})"
        if op == "window":
            width = f"{attrs['name']}={_attr(attrs['size'])}"
            return f"window({', '.join([axis, width, *fill])})"
        if op == "shift":
            return f"shift({', '.join([axis, _attr(attrs['by']), *fill])})"
        if op == "gather":
            return f"take({', '.join([axis, values[1], *fill])})"
        if op == "scan":
            return f"cum{attrs['how']}({axis})"
        if op == "sort":
            return f"sort({axis})" if attrs["how"] == "down" else f"sort({axis}, {_attr(attrs['how'])})"
        return f"{op}({axis})"

    def _bound(self, value: Attr | KnobRef) -> str:
        if isinstance(value, str):
            self.parameters.add("ctx")
            return f"ctx.{value}"
        return _attr(value)

    def _leaf(self, node: Node) -> Text:
        if node.op == "const":
            value = node.attrs["value"]
            return repr(value), _SIGN if isinstance(value, (int, float)) and value < 0 else _ATOM
        if node.op == "everything":
            return "everything()", _ATOM
        if node.op in ("knob", "param"):
            return str(node.attrs["name"]), _ATOM
        if node.op == "index":
            return f"index({node.attrs['axis']})", _ATOM
        owner = {"ctx": "ctx", "field": "s", "memory": "m"}.get(node.op, node.op)
        self.parameters.add(owner)
        return (f"{owner}.{node.attrs['name']}" if node.attrs else owner), _ATOM


def _in(part: Text, level: int) -> str:
    text, binding = part
    return text if binding >= level else f"({text})"


def _attr(value: Attr | KnobRef) -> str:
    return value.name if isinstance(value, KnobRef) else _quoted(value)


def _quoted(value: Attr) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _options(program: Program) -> str:
    def length(value: int | KnobRef) -> str:
        return _declaration(program.knobs[value.name]) if isinstance(value, KnobRef) else str(value)

    options = [f"page={length(program.page)}"]
    if program.block is not None:
        options.append(f"block={length(program.block)}")
    if program.kv_dtype != "auto":
        options.append(f'kv="{program.kv_dtype}"')
    if program.summary_dtype != "kv":
        options.append(f'summaries="{program.summary_dtype}"')
    if program.seed:
        options.append(f"seed={program.seed}")
    return ", ".join(options)


def _declaration(knob: Knob) -> str:
    if knob.kind == "bool":
        return f"knob.bool(default={knob.default})"
    if knob.kind == "choice":
        return f"knob.choice({', '.join(map(_quoted, knob.choices))}, default={_quoted(knob.default)})"
    options = [repr(knob.low), repr(knob.high)]
    if knob.log:
        options.append("log=True")
    if knob.step is not None:
        options.append(f"step={knob.step!r}")
    return f"knob.{knob.kind}({', '.join(options)}, default={knob.default!r})"


def _param(param: Param) -> str:
    arguments = [] if param.tensor == param.name else [f'"{_escaped(param.tensor)}"']
    arguments += [axis for axis in param.axes if axis not in param.sizes]
    arguments += [f"{axis}={size}" for axis, size in param.sizes.items()]
    if not param.per_layer or not param.axes:
        arguments.append(f"per_layer={param.per_layer}")
    if param.per_kv_head:
        arguments.append("per_kv_head=True")
    if param.kind != "float":
        arguments.append(f'kind="{param.kind}"')
    return f"param({', '.join(arguments)})"


def _memory(memory: Memory) -> str:
    arguments = [*(["pages"] if memory.type.kind == SET else []), *memory.type.axes]
    if memory.init:
        arguments.append(f"init={memory.init!r}")
    if memory.every != 1:
        arguments.append(f"every={_attr(memory.every)}")
    return f"memory.{memory.scope}({', '.join(arguments)})"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _docstring(doc: str) -> list[str]:
    if not doc:
        return []
    safe = _escaped(doc)
    first, *rest = safe.split("\n")
    lines = [f'    """{first}', *(f"    {line}" if line else "" for line in rest)]
    if rest:
        return [*lines, '    """', ""]
    return [lines[0] + '"""', ""]
