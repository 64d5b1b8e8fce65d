"""Traces the methods of an outline into one graph and puts the program together."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping

from vortexlab.dsl.errors import Diagnostic
from vortexlab.dsl.expressions import Expressions
from vortexlab.dsl.graph import RESERVED_AXES, Value
from vortexlab.dsl.ir import (
    DYNAMIC_CTX,
    FLOAT,
    PAGE_STAGE,
    POOL_STAGE,
    QUERY_STAGE,
    SET,
    STATIC_CTX,
    Program,
    Type,
)  # fmt: skip
from vortexlab.dsl.items import Deferred, Item, Poisoned, Record, Returned, Text, knob_item
from vortexlab.dsl.lint import early_reuse, out_of_range, spent_on_forced, unused_names, whole_budgets
from vortexlab.dsl.outline import Outline
from vortexlab.dsl.places import MAX_FINDINGS, Findings, Place, place_of
from vortexlab.dsl.returns import check_memory, check_output, check_pool, check_selection, check_summary
from vortexlab.dsl.rules import Graph
from vortexlab.dsl.tracer import Tracer
from vortexlab.dsl.whole import assemble


class Reader:
    """Reads one outline; `findings` collects what is wrong with it."""

    def __init__(self, text: str, outline: Outline, findings: Findings):
        self.text = text
        self.outline = outline
        self.findings = findings
        self.graph = Graph(outline.page, outline.block, outline.is_latent)
        self.axes = {*RESERVED_AXES, *(axis for param in outline.params.values() for axis in param.sizes)}
        self.used: set[str] = set()
        self.unused: list[tuple[str, Place]] = []
        self.returned: dict[str, dict[str, Place]] = {}
        self._constants: dict[tuple[str, str], Value | Text] = {}
        self._names = self._class_names()

    def program(self) -> Program | None:
        """The program, or None with findings."""
        if "select" not in self.outline.methods:
            return None
        fields = self._summaries()
        pooled = self._pool()
        handed: dict[str, Item | Deferred | None] = {
            "q": self._query(("head", "channel")),
            "s": Record("s", None if fields is None else {n: self._field(n, v) for n, v in fields.items()}),
            "m": Record("m", {name: self._memory(name) for name in (*self.outline.memories, *self._faulty())}),
            "ctx": self._ctx(),
        }
        handed["score"] = self._score(handed)
        output = handed["pages"] = self._selection(handed)
        result = self._result(handed)
        writes = self._writes(handed)
        if self._has_error() or output is None or fields is None or writes is None:
            return None
        program = assemble(self.text, self.outline, self.graph, fields, output, pooled, result, writes)
        if isinstance(program, Diagnostic):
            self.findings.append(program)
            return None
        self.findings += early_reuse(program)
        if self._has_error():
            return None
        self.findings += unused_names(program, self.outline, self.returned, self.used, self.unused)
        for look in (spent_on_forced, out_of_range, whole_budgets):
            self.findings += look(program)
        return program

    def _has_error(self) -> bool:
        return any(finding.severity == "error" for finding in self.findings)

    # ---- names of the class body

    def _class_names(self) -> dict[str, Deferred | None]:
        names: dict[str, Deferred | None] = {}
        outline, graph = self.outline, self.graph
        for name in outline.places:
            if name in outline.knobs:
                if name != "page":
                    names[name] = Deferred(lambda place, knob=outline.knobs[name]: knob_item(graph, knob, place))  # type: ignore[misc]
            elif name in outline.params:
                names[name] = Deferred(lambda place, name=name: graph.param(name, outline.params[name], place))  # type: ignore[misc]
            elif name in outline.memories:
                names[name] = Deferred(lambda place, name=name: self._bare_memory(name, place))  # type: ignore[misc]
            elif name in outline.constants:
                earlier = dict(names)
                names[name] = Deferred(lambda place, name=name, earlier=earlier: self._constant(name, earlier))  # type: ignore[misc]
                if not self._is_sound(name, earlier):
                    names[name] = None
            else:
                names[name] = None  # a declaration that has an error
        return names

    @staticmethod
    def _bare_memory(name: str, place: Place) -> Value:
        raise place.error(
            "memory-as-value",
            f"{name} is a memory, which is read through m",
            found=name,
            expected=f"m.{name}",
            hint=f"write m.{name}, and take the parameter m; remember returns dict({name}=...)",
        )

    def _is_sound(self, name: str, earlier: Mapping[str, Deferred | None]) -> bool:
        if len(self.findings) >= MAX_FINDINGS:
            return False
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

    # ---- what the methods are given

    def _query(self, axes: tuple[str, ...]) -> Deferred:
        return Deferred(lambda place: self.graph.add("q", Type(FLOAT, axes), (), place, self.graph.lengths))

    def _ctx(self) -> Record:
        def member(name: str) -> Callable[[Place], Value]:
            return lambda place: self.graph.ctx(name, place)

        return Record("ctx", {name: member(name) for name in (*STATIC_CTX, *DYNAMIC_CTX)})

    def _field(self, name: str, value: Value) -> Callable[[Place], Value]:
        type_ = Type(FLOAT, ("page", *value.type.axes))
        return lambda place: self.graph.add("field", type_, (), place, self.graph.sizes[value.index], name=name)

    def _memory(self, name: str) -> Callable[[Place], Value]:
        def member(place: Place) -> Value:
            if name not in self.outline.memories:
                raise Poisoned
            return self.graph.memory(self.outline.memories[name], place)

        return member

    def _faulty(self) -> list[str]:
        """Names of the class body whose declarations have an error."""
        outline = self.outline
        known = (outline.knobs, outline.params, outline.memories, outline.constants)
        return [name for name in outline.places if not any(name in names for names in known)]

    # ---- the methods

    def _run(self, name: str, handed: Mapping[str, Item | Deferred | None]) -> Returned | None:
        method = self.outline.methods[name]
        given = [a.arg for a in method.args.args]
        for argument in method.args.args:
            if argument.arg == "score" and "score" not in self.outline.methods:
                self.findings.append(
                    place_of(argument)
                    .error(
                        "score-missing",
                        f"{name} takes a score, but the program has no score method",
                        found="score",
                        hint="write def score(q, s), or remove the parameter",
                        expected="a method score(q, s)",
                    )
                    .diagnostic
                )
        scope = {**self._names, **{key: handed.get(key) for key in given if key in handed or key == "score"}}
        tracer = Tracer(self.graph, scope, self.axes, self.outline.knobs, name)
        made = tracer.run(method)
        self.findings += tracer.findings
        self.used |= tracer.used
        self.returned[name] = tracer.returned
        self.unused += [(local, place) for local, place in tracer.assigned.items() if local not in tracer.used]
        return made

    def _end(self, name: str) -> Place:
        return place_of(self.outline.methods[name].body[-1])

    def _summaries(self) -> dict[str, Value] | None:
        """The summaries by name; None where they could not be made."""
        if "summarize" not in self.outline.methods:
            return {}
        graph = self.graph
        graph.stage = PAGE_STAGE

        def leaf(name: str, width: str) -> Deferred:
            sizes = {**graph.lengths, "channel": graph.lengths[width]}
            type_ = Type(FLOAT, ("token", "channel"))
            return Deferred(lambda place: graph.add(name, type_, (), place, sizes))

        made = self._run("summarize", {"k": leaf("k", "channel"), "v": leaf("v", "value"), "ctx": self._ctx()})
        graph.stage = QUERY_STAGE
        if made is None:
            return None
        return self.findings.guard(lambda: check_summary(graph, made, self._end("summarize"), self.findings))

    def _pool(self) -> Value | None:
        if "pool" not in self.outline.methods:
            return None
        self.graph.stage = POOL_STAGE
        made = self._run("pool", {"q": self._query(("head", "query", "channel")), "ctx": self._ctx()})
        self.graph.stage = QUERY_STAGE
        if made is None:
            return None
        return self.findings.guard(lambda: check_pool(self.graph, made, self._end("pool")))

    def _score(self, handed: Mapping[str, Item | Deferred | None]) -> Item | None:
        if "score" not in self.outline.methods:
            return None
        made = self._run("score", handed)
        if isinstance(made, dict):
            return Record("score", {name: (lambda place, v=v: v) for name, v in made.items()})  # type: ignore[misc]
        return made

    def _selection(self, handed: Mapping[str, Item | Deferred | None]) -> Value | None:
        made = self._run("select", handed)
        return None if made is None else self.findings.guard(lambda: check_selection(made, self._end("select")))

    def _result(self, handed: Mapping[str, Item | Deferred | None]) -> Value | None:
        if "attend" not in self.outline.methods:
            return None
        made = self._run("attend", handed)
        if made is None:
            return None
        return self.findings.guard(lambda: check_output(self.graph, made, self._end("attend")))

    def _writes(self, handed: Mapping[str, Item | Deferred | None]) -> dict[str, Value] | None:
        """What every memory takes on; None where that could not be made."""
        memories = self.outline.memories
        if "remember" not in self.outline.methods:
            for name in memories:
                self.findings.append(
                    self.outline.places[name]
                    .error(
                        "memory-not-written",
                        f"nothing is ever written to the memory {name}",
                        found="no method remember",
                        expected=f"def remember(score): return dict({name}=...)",
                        hint="write what it takes on, or remove the declaration",
                    )
                    .diagnostic
                )
            return {}
        made = self._run("remember", handed)
        if made is None:
            return None
        if isinstance(made, dict):
            faulty = self._faulty()
            made = {name: value for name, value in made.items() if name not in faulty}
        places = self.returned["remember"]
        return check_memory(self.graph, memories, made, places, self._end("remember"), self.findings)
