"""From a program's text to a checked `Program`.

The text is turned into a syntax tree under limits and evaluated by our own tracer; it is never run, imported or
evaluated by Python, whoever wrote it.
"""

from __future__ import annotations

import ast
import stat
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from vortexlab.dsl.errors import Diagnostic, ProgramError, VortexError
from vortexlab.dsl.expressions import Expressions
from vortexlab.dsl.graph import RESERVED_AXES, Value
from vortexlab.dsl.ir import DYNAMIC_CTX, FLOAT, PAGE_STAGE, QUERY_STAGE, SET, STATIC_CTX, Program, Type
from vortexlab.dsl.items import Deferred, Item, Poisoned, Record, Returned, Text, knob_item
from vortexlab.dsl.limits import MAX_BYTES, syntax_tree
from vortexlab.dsl.lint import spent_on_forced, unused_names
from vortexlab.dsl.outline import Outline, read_outline
from vortexlab.dsl.places import Findings, Place, place_of
from vortexlab.dsl.rules import Graph
from vortexlab.dsl.sizes import Size
from vortexlab.dsl.tracer import Tracer

MAX_PROGRAM_NODES = 400
MAX_PROGRAM_DEPTH = 128


def parse(text: str) -> Program:
    """The program in `text`, its knobs unbound. Raises `ProgramError` with every finding."""
    program, findings = check(text)
    if program is None:
        raise ProgramError([f for f in findings if f.severity == "error"])
    return program


def load(path: str | Path) -> Program:
    """Parses a file. Raises `VortexError` when it cannot be read, `ProgramError` when it is no program."""
    return parse(read_text(path))


def read_text(path: str | Path) -> str:
    """The text of a program file. Raises `VortexError` when it cannot be read or is no text."""
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise VortexError(f"{path} is no file; give the path of a program file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise VortexError(f"cannot read {path}: {reason}; give the path of a program file") from None
    if len(data) > MAX_BYTES:
        raise VortexError(f"{path} is larger than {MAX_BYTES} bytes; give the path of a program file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise VortexError(f"{path} is not UTF-8 text (byte {error.start}); give the path of a program file") from None


def check(text: str) -> tuple[Program | None, list[Diagnostic]]:
    """The program, or None, and every finding: errors first, then warnings, each in the order of the text."""
    try:
        tree = syntax_tree(text)
    except ProgramError as error:
        return None, list(error.diagnostics)
    findings = Findings()
    outline = read_outline(tree, findings)
    program = _Reader(text, outline, findings).program() if outline is not None else None
    lines = text.split("\n")
    found = {_in_characters(finding, lines): None for finding in findings}
    return program, sorted(found, key=lambda f: (f.severity != "error", f.line, f.column))


def _in_characters(finding: Diagnostic, lines: list[str]) -> Diagnostic:
    """Python counts columns in bytes, editors in characters."""
    line = lines[finding.line - 1] if 0 < finding.line <= len(lines) else ""
    if line.isascii():
        return finding
    return replace(finding, column=len(line.encode()[: finding.column - 1].decode(errors="ignore")) + 1)


class _Reader:
    """Traces the three methods of an outline into one graph."""

    def __init__(self, text: str, outline: Outline, findings: Findings):
        self.text = text
        self.outline = outline
        self.findings = findings
        self.graph = Graph()
        self.axes = set(RESERVED_AXES)
        self.used: set[str] = set()
        self.unused: list[tuple[str, Place]] = []
        self.returned: dict[str, dict[str, Place]] = {"summarize": {}, "score": {}, "select": {}}
        self._constants: dict[tuple[str, str], Value | Text] = {}
        self._names = self._class_names()

    def program(self) -> Program | None:
        """The program, or None with findings."""
        if "select" not in self.outline.methods:
            return None
        fields = self._summaries()
        score = self._score(fields)
        output = self._selection(score)
        if self._has_error() or output is None or fields is None:
            return None
        program = self._assemble(fields, output)
        if self._has_error():
            return None
        self.findings += unused_names(program, self.outline, self.returned, self.used, self.unused)
        self.findings += spent_on_forced(program)
        return program

    def _has_error(self) -> bool:
        return any(finding.severity == "error" for finding in self.findings)

    # ---- names of the class body

    def _class_names(self) -> dict[str, Deferred | None]:
        names: dict[str, Deferred | None] = {}
        outline = self.outline
        for name in outline.places:
            if name in outline.knobs:
                if name != "page":
                    names[name] = Deferred(lambda place, knob=outline.knobs[name]: knob_item(self.graph, knob, place))  # type: ignore[misc]
            elif name in outline.constants:
                earlier = dict(names)
                names[name] = Deferred(lambda place, name=name, earlier=earlier: self._constant(name, earlier))  # type: ignore[misc]
                if not self._is_sound(name, earlier):
                    names[name] = None
            else:
                names[name] = None  # a knob whose declaration has an error
        return names

    def _is_sound(self, name: str, earlier: Mapping[str, Deferred | None]) -> bool:
        try:
            return self.findings.guard(lambda: self._constant(name, earlier)) is not None
        except Poisoned:
            return False

    def _constant(self, name: str, earlier: Mapping[str, Deferred | None]) -> Value | Text:
        """A class constant in the stage that uses it."""
        key = (name, self.graph.stage)
        if key not in self._constants:
            node = self.outline.constants[name]
            tracer = Expressions(self.graph, earlier, set(RESERVED_AXES), self.outline.knobs)
            item: Item = tracer.item(node)
            if not isinstance(item, (Value, Text)) or (
                isinstance(item, Value) and (item.type.axes or item.type.kind == SET)
            ):
                raise place_of(node).error(
                    "class-constant",
                    f"{name} is neither a number nor a knob",
                    found=ast.unparse(node)[:40],
                    expected="a number, or arithmetic on numbers and knobs",
                    hint=f"{name} = 4, or {name} = knob.int(1, 64, default=4)",
                )
            self.used |= tracer.used
            self._constants[key] = item
        return self._constants[key]

    # ---- the methods

    def _run(self, name: str, parameters: Mapping[str, Item | Deferred | None]) -> Returned | None:
        method = self.outline.methods[name]
        given = {a.arg for a in method.args.args}
        scope = {**self._names, **{key: value for key, value in parameters.items() if key in given}}
        tracer = Tracer(self.graph, scope, self.axes, self.outline.knobs, name)
        made = tracer.run(method)
        self.findings += tracer.findings
        self.used |= tracer.used
        self.returned[name] = tracer.returned
        self.unused += [(local, place) for local, place in tracer.assigned.items() if local not in tracer.used]
        return made

    def _ctx(self) -> Record:
        def member(name: str) -> Callable[[Place], Value]:
            return lambda place: self.graph.ctx(name, place)

        return Record("ctx", {name: member(name) for name in (*STATIC_CTX, *DYNAMIC_CTX)})

    def _summaries(self) -> dict[str, Value] | None:
        """The summaries by name; None where they could not be made."""
        if "summarize" not in self.outline.methods:
            return {}
        self.graph.stage = PAGE_STAGE
        sizes = {"token": Size(self.outline.page), "channel": Size("channel")}

        def leaf(name: str) -> Deferred:
            type_ = Type(FLOAT, ("token", "channel"))
            return Deferred(lambda place: self.graph.add(name, type_, (), place, sizes))

        made = self._run("summarize", {"k": leaf("k"), "v": leaf("v"), "ctx": self._ctx()})
        self.graph.stage = QUERY_STAGE
        if made is None:
            return None
        end = place_of(self.outline.methods["summarize"].body[-1])
        if not isinstance(made, dict):
            self.findings.append(
                end.error(
                    "summary-mapping",
                    "summarize returns summaries by name",
                    found=str(made),
                    expected="return dict(name=value)",
                    hint="each summary has a name: s.name in score",
                ).diagnostic
            )
            return None
        for name, value in made.items():
            node = self.graph.nodes[value.index]
            if value.type.kind != FLOAT or not self._reads_page(value.index):
                self.findings.append(
                    Place(node.line, node.column)
                    .error(
                        "summary-kind",
                        f"summary {name} must be a float made of k or v",
                        found=str(value),
                        expected="float",
                        hint="use float(x) on a truth value; numbers need no summary",
                    )
                    .diagnostic
                )
        return made

    def _reads_page(self, index: int) -> bool:
        seen: set[int] = set()
        stack = [index]
        while stack:
            i = stack.pop()
            if self.graph.nodes[i].op in ("k", "v"):
                return True
            stack.extend(j for j in self.graph.nodes[i].inputs if j not in seen)
            seen.update(self.graph.nodes[i].inputs)
        return False

    def _score(self, fields: dict[str, Value] | None) -> Item | None:
        if "score" not in self.outline.methods:
            return None
        q_type, q_sizes = Type(FLOAT, ("head", "channel")), {"head": Size("head"), "channel": Size("channel")}
        q = Deferred(lambda place: self.graph.add("q", q_type, (), place, q_sizes))
        s = Record("s", None if fields is None else {name: self._field(name, value) for name, value in fields.items()})
        made = self._run("score", {"q": q, "s": s, "ctx": self._ctx()})
        if isinstance(made, dict):
            return Record("score", {name: (lambda place, v=v: v) for name, v in made.items()})  # type: ignore[misc]
        return made

    def _field(self, name: str, value: Value) -> Callable[[Place], Value]:
        type_ = Type(FLOAT, ("page", *value.type.axes))
        return lambda place: self.graph.add("field", type_, (), place, self.graph.sizes[value.index], name=name)

    def _selection(self, score: Item | None) -> Value | None:
        method = self.outline.methods["select"]
        parameter = next((a for a in method.args.args if a.arg == "score"), None)
        if parameter is not None and "score" not in self.outline.methods:
            self.findings.append(
                place_of(parameter)
                .error(
                    "score-missing",
                    "select takes a score, but the program has no score method",
                    found="score",
                    hint="write def score(q, s), or remove the parameter",
                    expected="a method score(q, s)",
                )
                .diagnostic
            )
        made = self._run("select", {"ctx": self._ctx(), "score": score})
        if made is None:
            return None
        if not isinstance(made, Value) or made.type.kind != SET:
            self.findings.append(
                place_of(method.body[-1])
                .error(
                    "not-a-set",
                    "select returns a set of pages",
                    found="a mapping" if isinstance(made, dict) else str(made),
                    expected="set",
                    hint="make one with topk(score, n), first(n), last(n), ...",
                )
                .diagnostic
            )
            return None
        return made

    # ---- the whole

    def _assemble(self, fields: Mapping[str, Value], output: Value) -> Program:
        outline, graph = self.outline, self.graph
        whole = Program(
            name=outline.name,
            page=outline.page,
            nodes=tuple(graph.nodes),
            seed=outline.seed,
            fields={name: value.index for name, value in fields.items()},
            output=output.index,
            knobs=outline.knobs,
            summary_dtype=outline.summary_dtype,
            doc=outline.doc,
            source=self.text,
        )
        program = live_part(whole)
        if len(program.nodes) > MAX_PROGRAM_NODES or _depth(program) > MAX_PROGRAM_DEPTH:
            self.findings.append(
                outline.place.error(
                    "program-too-large",
                    "the program computes too much",
                    found=f"{len(program.nodes)} operations",
                    expected=f"at most {MAX_PROGRAM_NODES}, no chain longer than {MAX_PROGRAM_DEPTH}",
                    hint="simplify it; a published program has under thirty operations",
                ).diagnostic
            )
        return program


def live_part(program: Program) -> Program:
    """The program without what its output does not depend on."""
    live = program.live()
    place = {old: new for new, old in enumerate(live)}
    nodes = tuple(
        replace(program.nodes[old], inputs=tuple(place[i] for i in program.nodes[old].inputs)) for old in live
    )
    fields = {name: place[index] for name, index in program.live_fields().items()}
    return replace(program, nodes=nodes, fields=fields, output=place[program.output])


def _depth(program: Program) -> int:
    depth: list[int] = []
    for node in program.nodes:
        below = [*node.inputs, *([program.fields[str(node.attrs["name"])]] if node.op == "field" else [])]
        depth.append(1 + max((depth[i] for i in below), default=0))
    return depth[program.output]
