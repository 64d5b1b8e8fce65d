"""Writes a program back as text: `parse(to_source(p))` has the canonical hash of `p`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from vortexlab.dsl.ir import PAGE_STAGE, SET, Attr, Knob, KnobRef, Node, Program
from vortexlab.dsl.surface import WORDS

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
_LEAVES = ("const", "knob", "ctx", "field", "k", "v", "q", "everything")
_LONG = 72

Text = tuple[str, int]


def to_source(program: Program) -> str:
    """The program as a file, knobs included; a bound program prints its numbers. Dead code is left out."""
    lines = ["from vortexlab.dsl import *", "", "", f"@program({_options(program)})", f"class {program.name}:"]
    lines += _docstring(program.doc)
    declared = [f"    {knob.name} = {_declaration(knob)}" for knob in program.knobs.values() if knob.name != "page"]
    lines += [*declared, ""] if declared else []
    fields = program.live_fields()
    if fields:
        lines += _Method(program, {}).lines("summarize", list(fields.values()), list(fields))
    handed = _handed(program)
    given = dict(
        zip(
            handed, ["score"] if len(handed) == 1 else [f"score.{_letters(n)}" for n in range(len(handed))], strict=True
        )
    )
    if handed:
        keys = [] if len(handed) == 1 else [name.removeprefix("score.") for name in given.values()]
        lines += _Method(program, {}).lines("score", handed, keys)
    lines += _Method(program, given).lines("select", [program.output], [])
    return "\n".join(lines).rstrip() + "\n"


def _handed(program: Program) -> list[int]:
    """What `score` hands to `select`: values that depend on q or a summary and go into a set."""
    exact: set[int] = set()
    handed: set[int] = set()
    for index in program.live():
        node = program.nodes[index]
        if node.stage == PAGE_STAGE:
            continue
        if node.type.kind == SET:
            handed.update(i for i in node.inputs if i not in exact and program.nodes[i].type.kind != SET)
        elif node.op in ("const", "knob", "ctx") or (node.inputs and all(i in exact for i in node.inputs)):
            exact.add(index)
    return sorted(handed)


def _letters(number: int) -> str:
    return f"a{number + 1}"


class _Method:
    """Writes one method. `given` are nodes that are there already, under a name."""

    def __init__(self, program: Program, given: Mapping[int, str]):
        self.program = program
        self.text: dict[int, Text] = {index: (name, _ATOM) for index, name in given.items()}
        self.given = given
        self.parameters: set[str] = set()
        self.taken = {*program.knobs, *WORDS, "k", "v", "q", "s", "ctx", "score", "abs", "min", "max", "float", "dict"}
        for node in program.nodes:
            if node.op in ("split", "rename"):
                self.taken.add(str(node.attrs["name" if node.op == "split" else "new"]))
        self.count = 0

    def lines(self, name: str, results: Sequence[int], keys: Sequence[str]) -> list[str]:
        nodes = self._needed(results)
        uses = Counter(i for index in nodes for i in self.program.nodes[index].inputs)
        uses.update(results)
        body = []
        for index in nodes:
            node = self.program.nodes[index]
            text, binding = self._expression(node)
            if node.op not in _LEAVES and (uses[index] > 1 or (len(text) > _LONG and index not in results)):
                local = self._local(node)
                body.append(f"        {local} = {text}")
                text, binding = local, _ATOM
            self.text[index] = (text, binding)
        self.parameters.update(self.given[i].split(".")[0] for i in self._reached if i in self.given)
        values = [self.text[i][0] for i in results]
        if keys:
            values = [f"dict({', '.join(f'{key}={value}' for key, value in zip(keys, values, strict=True))})"]
        order = [p for p in ("k", "v", "q", "s", "score", "ctx") if p in self.parameters]
        return [f"    def {name}({', '.join(order)}):", *body, f"        return {values[0]}", ""]

    def _needed(self, results: Sequence[int]) -> list[int]:
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
        if op in _LEAVES:
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
        if op == "share":
            values.append(_attr(attrs["how"]))
        elif op == "dot":
            values.append(str(attrs["axis"]))
        elif op == "softmax":
            values.append("page")
        elif op in _ARGUMENTS:
            count, keywords = _ARGUMENTS[op]
            extra = (*keywords, "among")[: len(values) - count]
            values[count:] = [f"{key}={value}" for key, value in zip(extra, values[count:], strict=True)]
            if op == "random":
                values.append(f"salt={attrs['salt']}")
        return f"{op}({', '.join(values)})", _ATOM

    def _leaf(self, node: Node) -> Text:
        if node.op == "const":
            value = node.attrs["value"]
            return repr(value), _SIGN if isinstance(value, (int, float)) and value < 0 else _ATOM
        if node.op == "everything":
            return "everything()", _ATOM
        if node.op == "knob":
            return str(node.attrs["name"]), _ATOM
        owner = {"ctx": "ctx", "field": "s"}.get(node.op, node.op)
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
    page = _declaration(program.knobs[program.page.name]) if isinstance(program.page, KnobRef) else str(program.page)
    options = [f"page={page}"]
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


def _docstring(doc: str) -> list[str]:
    if not doc:
        return []
    safe = doc.replace("\\", "\\\\").replace('"', '\\"') if '"' in doc else doc.replace("\\", "\\\\")
    first, *rest = safe.split("\n")
    lines = [f'    """{first}', *(f"    {line}" if line else "" for line in rest)]
    if rest:
        return [*lines, '    """', ""]
    return [lines[0] + '"""', ""]
