"""From a program's text to a checked `Program`.

The text is parsed to a syntax tree under limits and evaluated by our own tracer; it is never run, imported or
evaluated by Python, whoever wrote it.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vortexlab.dsl.errors import Diagnostic, ProgramError, VortexError
from vortexlab.dsl.graph import RESERVED_AXES, Finding, Graph, Place, Value
from vortexlab.dsl.ir import (
    DYNAMIC_CTX,
    FLOAT,
    PAGE_STAGE,
    QUERY_STAGE,
    SET,
    STATIC_CTX,
    Attr,
    Knob,
    KnobRef,
    Program,
    Type,
)  # fmt: skip
from vortexlab.dsl.limits import syntax_tree
from vortexlab.dsl.tracer import FUNCTIONS, Item, Record, Tracer, place_of, refused, suggestion
from vortexlab.dsl.warnings import warnings_of

T = TypeVar("T")
MAX_PAGE = 256
_METHODS = {"summarize": ("k", "v", "ctx"), "score": ("q", "s", "ctx"), "select": ("score", "ctx")}
_SUMMARY_DTYPES = ("kv", "fp32", "bf16", "fp16")


def parse(text: str) -> Program:
    """The program in `text`, its knobs unbound. Raises `ProgramError` with every finding."""
    program, findings = check(text)
    if program is None:
        raise ProgramError([f for f in findings if f.severity == "error"])
    return program


def load(path: str | Path) -> Program:
    """Parses a file. Raises `VortexError` when it cannot be read, `ProgramError` when it is no program."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise VortexError(f"cannot read {path}: {error.strerror}; give the path of a program file") from None
    try:
        return parse(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise VortexError(f"{path} is not UTF-8 text; give the path of a program file") from None


def check(text: str) -> tuple[Program | None, list[Diagnostic]]:
    """The program, or None, and every finding: errors first, then warnings."""
    try:
        tree = syntax_tree(text)
    except ProgramError as error:
        return None, list(error.diagnostics)
    return _Reader(text).read(tree)


class _Reader:
    def __init__(self, text: str):
        self.text = text
        self.findings: list[Diagnostic] = []
        self.graph = Graph()
        self.names: dict[str, Item | Knob] = {}
        self.knobs: dict[str, Knob] = {}
        self.fields: dict[str, Value] = {}
        self.used: set[str] = set()
        self.axes = set(RESERVED_AXES)
        self.page: int | KnobRef = 16
        self.seed = 0
        self.summaries = "kv"

    def guard(self, action: Callable[[], T]) -> T | None:
        """Runs a step and keeps its finding, so that one reading reports several errors."""
        try:
            return action()
        except Finding as finding:
            self.findings.append(finding.diagnostic)
            return None

    def read(self, tree: ast.Module) -> tuple[Program | None, list[Diagnostic]]:
        body = self.guard(lambda: self._class(tree))
        if body is None:
            return None, self.findings
        self.guard(lambda: self._decorator(body))
        methods: dict[str, ast.FunctionDef] = {}
        for position, item in enumerate(body.body):
            self.guard(lambda item=item, position=position: self._member(item, position, methods))  # type: ignore[misc]
        if "select" not in methods and not self.findings:
            self.guard(lambda: _raise(place_of(body).error(
                "select-missing", "the program does not select anything", expected="a method select(score, ctx)")))  # fmt: skip
        output = self._trace(methods) if "select" in methods else None
        if self.findings or output is None:
            return None, self.findings
        program = Program(
            name=body.name, page=self.page, nodes=tuple(self.graph.nodes), seed=self.seed,
            fields={name: value.index for name, value in self.fields.items()}, output=output.index, knobs=self.knobs,
            summary_dtype=self.summaries, doc=ast.get_docstring(body) or "", source=self.text,
        )  # fmt: skip
        try:
            program.bind()
        except VortexError as error:
            return None, [Diagnostic("sizes", str(error), body.lineno, body.col_offset + 1)]
        return program, warnings_of(program, self.used)

    # ---- the class

    def _class(self, tree: ast.Module) -> ast.ClassDef:
        found: ast.ClassDef | None = None
        for position, item in enumerate(tree.body):
            if isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and position == 0:
                continue
            if isinstance(item, ast.ImportFrom) and item.module == "vortexlab.dsl" and item.level == 0 and (
                [alias.name for alias in item.names] == ["*"]
            ):
                continue
            if isinstance(item, (ast.Import, ast.ImportFrom)):
                raise place_of(item).error("import", "a program imports nothing else",
                                           expected="from vortexlab.dsl import *")  # fmt: skip
            if isinstance(item, ast.ClassDef):
                if found is not None:
                    raise place_of(item).error("two-classes", "a file holds one program", hint="remove the second class")
                found = item
                continue
            raise place_of(item).error("top-level", f"{type(item).__name__} cannot stand at the top of a program",
                                       expected="one class decorated with @program(page=16)")  # fmt: skip
        if found is None:
            raise Place(1, 1).error("no-class", "the file holds no program", expected="a class decorated with @program")
        if found.bases or found.keywords or getattr(found, "type_params", None):
            raise place_of(found).error("class-bases", "a program has no base classes", hint=f"class {found.name}:")
        return found

    def _decorator(self, body: ast.ClassDef) -> None:
        if len(body.decorator_list) != 1:
            raise place_of(body).error("decorator", "a program has exactly one decorator", expected="@program(page=16)")
        node = body.decorator_list[0]
        place = place_of(node)
        if isinstance(node, ast.Name) and node.id == "program":
            return
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "program") or node.args:
            raise place.error("decorator", "this is not the decorator of a program", expected="@program(page=16)")
        for keyword in node.keywords:
            here = place_of(keyword.value)
            if keyword.arg == "page":
                self._page(keyword.value, here)
            elif keyword.arg == "summaries":
                self.summaries = _literal(keyword.value, here, _SUMMARY_DTYPES)
            elif keyword.arg == "seed":
                self.seed = _integer(keyword.value, here, 0, 2**32 - 1)
            else:
                raise here.error("unknown-argument", f"program has no option {keyword.arg}",
                                 expected="page, summaries, seed")  # fmt: skip

    def _page(self, node: ast.expr, place: Place) -> None:
        if isinstance(node, ast.Call):
            knob = _knob("page", node)
            sizes = knob.choices if knob.kind == "choice" else (knob.low, knob.high)
            if knob.kind not in ("choice", "int") or not all(type(s) is int and 1 <= s <= MAX_PAGE for s in sizes):
                raise place.error("page-size", "the page knob offers whole numbers", expected=f"1 to {MAX_PAGE}")
            self.knobs["page"], self.page = knob, KnobRef("page")
        else:
            self.page = _integer(node, place, 1, MAX_PAGE)

    def _member(self, item: ast.stmt, position: int, methods: dict[str, ast.FunctionDef]) -> None:
        place = place_of(item)
        if isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and position == 0:
            return
        if isinstance(item, ast.Pass):
            return
        if isinstance(item, ast.FunctionDef):
            if item.name not in _METHODS:
                raise place.error("unknown-method", f"a program has no method {item.name}",
                                  hint=suggestion(item.name, list(_METHODS)))  # fmt: skip
            if item.name in methods:
                raise place.error("method-twice", f"{item.name} is defined twice")
            arguments = item.args
            if (item.decorator_list or item.returns or arguments.vararg or arguments.kwarg or arguments.kwonlyargs
                    or arguments.posonlyargs or arguments.defaults or any(a.annotation for a in arguments.args)
                    or getattr(item, "type_params", None)):  # fmt: skip
                raise place.error("method-shape", f"{item.name} takes plain parameters only",
                                  expected=f"def {item.name}({', '.join(_METHODS[item.name])})")  # fmt: skip
            for argument in arguments.args:
                if argument.arg not in _METHODS[item.name]:
                    raise place_of(argument).error("unknown-parameter", f"{item.name} has no parameter {argument.arg}",
                                                   expected=", ".join(_METHODS[item.name]))  # fmt: skip
            methods[item.name] = item
            return
        if isinstance(item, ast.Assign) and len(item.targets) == 1 and isinstance(item.targets[0], ast.Name):
            self._assign(item.targets[0].id, item.value, place)
            return
        raise refused(item)

    def _assign(self, name: str, node: ast.expr, place: Place) -> None:
        if name in self.names or name in ("page", "head", "token", "channel", *FUNCTIONS, "k", "v", "q", "s", "ctx"):
            raise place.error("name-taken", f"{name} is taken", hint="choose another name")
        if isinstance(node, ast.Call):
            knob = _knob(name, node)
            self.knobs[name] = self.names[name] = knob
            return
        try:
            self.names[name] = Tracer(self.graph, {}).value(node)
        except Finding:
            raise place_of(node).error("class-constant", f"{name} is neither a number nor a knob",
                                       hint=f"{name} = 4, or {name} = knob.int(1, 64, default=4)") from None  # fmt: skip

    # ---- the methods

    def _trace(self, methods: dict[str, ast.FunctionDef]) -> Value | None:
        graph = self.graph
        ctx = Record("ctx", {name: (lambda place, name=name: graph.ctx(name, place))
                             for name in (*STATIC_CTX, *DYNAMIC_CTX)})  # type: ignore[misc]  # fmt: skip
        if "summarize" in methods:
            graph.stage = PAGE_STAGE
            axes = ("token", "channel")
            scope: dict[str, Item | Knob] = {
                name: graph.add(name, Type(FLOAT, axes), (), Place(0, 0)) for name in ("k", "v")
            }
            made = self._run("summarize", methods, {**scope, "ctx": ctx})
            if made is not None and not isinstance(made, dict):
                self.guard(lambda: _raise(place_of(methods["summarize"].body[-1]).error(
                    "summary-mapping", "summarize returns named summaries", expected="return dict(name=value)")))  # fmt: skip
            elif made is not None:
                for name, value in made.items():
                    if value.type.kind != FLOAT:
                        self.guard(lambda name=name, value=value: _raise(place_of(methods["summarize"]).error(  # type: ignore[misc]
                            "summary-kind", f"summary {name} must be a float", found=str(value))))  # fmt: skip
                self.fields = made
        graph.stage = QUERY_STAGE
        score: Item | dict[str, Value] | None = None
        if "score" in methods:
            members = {name: self._field(name, value) for name, value in self.fields.items()}
            q = graph.add("q", Type(FLOAT, ("head", "channel")), (), Place(0, 0))
            score = self._run("score", methods, {"q": q, "s": Record("s", members), "ctx": ctx})
            if self.findings:
                return None
        scope = {"ctx": ctx}
        if isinstance(score, dict):
            scope["score"] = Record("score", {n: (lambda place, v=v: v) for n, v in score.items()})  # type: ignore[misc]
        elif score is not None:
            scope["score"] = score
        elif any(a.arg == "score" for a in methods["select"].args.args):
            self.guard(lambda: _raise(place_of(methods["select"]).error(
                "score-missing", "select takes a score, but the program has no score method",
                hint="write def score(q, s), or remove the parameter")))  # fmt: skip
            return None
        chosen = self._run("select", methods, scope)
        if chosen is None:
            return None
        end = place_of(methods["select"].body[-1])
        if not isinstance(chosen, Value) or chosen.type.kind != SET:
            self.guard(lambda: _raise(end.error(
                "not-a-set", "select returns a set of pages", found=str(chosen) if isinstance(chosen, Value) else "a mapping",
                hint="make one with topk(score, n), first(n), last(n), ...")))  # fmt: skip
            return None
        return chosen

    def _field(self, name: str, value: Value) -> Callable[[Place], Value]:
        type_ = Type(FLOAT, ("page", *value.type.axes))
        return lambda place: self.graph.add("field", type_, (), place, name=name)

    def _run(
        self, name: str, methods: dict[str, ast.FunctionDef], parameters: dict[str, Item | Knob]
    ) -> Item | dict[str, Value] | None:
        method = methods[name]
        given = {a.arg for a in method.args.args}
        visible = {key: value for key, value in parameters.items() if key in given}
        tracer = Tracer(self.graph, {**self.names, **visible}, self.axes)
        made = self.guard(lambda: tracer.run(method))
        self.used |= tracer.used
        return made


def _raise(finding: Finding) -> None:
    raise finding


def _integer(node: ast.expr, place: Place, low: int, high: int) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int and low <= node.value <= high:
        return node.value
    raise place.error("whole-number", "a whole number is expected here", found=ast.unparse(node)[:40],
                      expected=f"{low} to {high}")  # fmt: skip


def _literal(node: ast.expr, place: Place, allowed: tuple[str, ...]) -> str:
    if isinstance(node, ast.Constant) and node.value in allowed:
        return str(node.value)
    raise place.error("unknown-dtype", "unknown precision", found=ast.unparse(node)[:40], expected=", ".join(allowed))


def _number(node: ast.expr) -> Attr:
    """A literal, with its sign; anything else raises."""
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, node = -1, node.operand
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float, str)):
        value = node.value
        if isinstance(value, (bool, str)):
            if sign == 1:
                return value
        elif isinstance(value, int) and abs(value) < 2**53 or isinstance(value, float) and math.isfinite(value):
            return sign * value
    raise place_of(node).error("knob-value", "a knob's ranges and values are written out", found=ast.unparse(node)[:40],
                               expected="a finite number, True, False or text in quotes")  # fmt: skip


def _knob(name: str, node: ast.Call) -> Knob:
    """`knob.int(low, high, log=, step=, default=)`, `knob.float(...)`, `knob.choice(*values, default=)`, `knob.bool(default=)`."""
    place = place_of(node)
    kinds = ("int", "float", "choice", "bool")
    if not (isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) and node.func.value.id == "knob"):
        raise place.error("class-constant", f"{name} is neither a number nor a knob",
                          hint=f"{name} = 4, or {name} = knob.int(1, 64, default=4)")  # fmt: skip
    kind = node.func.attr
    if kind not in kinds:
        raise place.error("knob-kind", f"unknown kind of knob {kind}", expected=", ".join(f"knob.{k}" for k in kinds))
    options = {str(k.arg): _number(k.value) for k in node.keywords}
    values = [_number(arg) for arg in node.args]
    allowed = {"int": {"log", "step", "default"}, "float": {"log", "step", "default"}}.get(kind, {"default"})
    for option in options:
        if option not in allowed:
            raise place.error("unknown-argument", f"knob.{kind} has no option {option}", expected=", ".join(sorted(allowed)))
    if kind == "bool":
        if values or type(options.get("default", True)) is not bool:
            raise place.error("knob-range", "knob.bool takes a default alone", expected="knob.bool(default=True)")
        return Knob(name, kind, bool(options.get("default", True)))
    if kind == "choice":
        types = {str if isinstance(v, str) else bool if isinstance(v, bool) else float for v in values}
        if len(values) < 2 or len(set(values)) != len(values) or len(values) > 16 or len(types) != 1:
            raise place.error("knob-range", "knob.choice takes 2 to 16 different values of one kind",
                              expected='knob.choice("max", "mean", default="max")')  # fmt: skip
        default = options.get("default", values[0])
        if default not in values:
            raise place.error("knob-default", f"the default of {name} is none of its choices", found=repr(default))
        return Knob(name, kind, default, choices=tuple(values))
    return _range(name, kind, values, options, place)


def _range(name: str, kind: str, values: list[Attr], options: dict[str, Attr], place: Place) -> Knob:
    shape = f"knob.{kind}(low, high, default=...)"
    if len(values) != 2:
        raise place.error("knob-range", f"knob.{kind} takes its lowest and highest value", expected=shape)
    wanted = (int,) if kind == "int" else (int, float)
    default, step, log = options.get("default"), options.get("step"), options.get("log", False)
    numbers = [*values, *([] if default is None else [default]), *([] if step is None else [step])]
    if any(type(v) not in wanted for v in numbers) or type(log) is not bool:
        raise place.error("knob-range", f"the values of knob.{kind} {name} have another kind", expected=shape)
    low, high = values[0], values[1]
    assert isinstance(low, (int, float)) and isinstance(high, (int, float))
    if not low <= high:
        raise place.error("knob-range", f"the range of {name} is empty", found=f"{low} to {high}", hint="low <= high")
    if log and low <= 0:
        raise place.error("knob-range", f"{name} is logarithmic and starts at {low}", hint="start above 0")
    if step is not None and (not isinstance(step, (int, float)) or step <= 0 or log):
        raise place.error("knob-range", f"the step of {name} must be above 0, and a log knob has none", found=str(step))
    if default is None:
        raise place.error("knob-default", f"{name} has no default", expected=shape)
    assert isinstance(default, (int, float))
    if not low <= default <= high:
        raise place.error("knob-default", f"the default of {name} is outside its range", found=str(default),
                          expected=f"{low} to {high}")  # fmt: skip
    return Knob(name, kind, default if kind == "int" else float(default), low, high, bool(log), step)  # type: ignore[arg-type]
