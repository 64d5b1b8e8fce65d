"""Makes a disagreement small: the program by edits of its syntax tree, the configuration by halving its numbers.

    shrunk = shrink(program, Setting.of(course), lambda program, setting: ...still disagrees...)

Every step must parse, be smaller, and still fail. Programs are kept in the form that the printer gives them, so dead
code goes by itself and knobs are numbers. The search is greedy: it ends where no single step is left, or on time.
"""

from __future__ import annotations

import ast
import copy
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch

from vortexlab.dsl import parse, to_source
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.dsl.testing import Case, Course, drawn_case, drawn_course

#: What an expression is replaced by when none of its parts will do.
_LEAVES = ("1", "1.0", "True", "first(1)", "everything()", "index(page)", "q", "ctx.length")
_HEAD_DIMS = (4, 8, 16, 32, 64, 128)
#: Seeds that a smaller configuration is tried with, since other sizes draw other numbers.
_SEEDS = 3


@dataclass(frozen=True)
class Setting:
    """A configuration that a program is run in, and the seeds of its numbers: all that makes it again.

    `layer`: of a case; `layers`, `steps`: of a course. `block`: tokens of a cache block, where that fits the page.
    """

    lengths: tuple[int, ...]
    kv_heads: int = 1
    group: int = 1
    head_dim: int = 4
    latent: int = 0
    layer: int = 0
    layers: int = 1
    steps: int = 1
    kind: str = "integers"
    dtype: str = "float32"
    block: int = 0
    inputs: int = 0
    seed: int = 0

    @staticmethod
    def of(drawn: Case | Course) -> Setting:
        case, steps = (drawn.case, drawn.steps) if isinstance(drawn, Course) else (drawn, 1)
        static, dtype = case.static, str(case.keys[0].dtype).removeprefix("torch.")
        return Setting(
            tuple(case.lengths), static.kv_heads, static.group, static.head_dim, static.latent, static.layer,
            static.layers, steps, case.kind, dtype, case.block, case.inputs, case.seed,
        )  # fmt: skip

    def case(self, program: Program) -> Case:
        page, scale = program.page_size, 0.125 if self.latent else self.head_dim**-0.5
        static = Static(self.kv_heads, self.group, self.head_dim, scale, self.layer, self.layers, self.latent)
        program.axis_sizes(static)  # refuses a split that does not divide, and the like
        fits = self.block and (self.block % page == 0 or page % self.block == 0)
        return drawn_case(
            program, static, list(self.lengths), kind=self.kind, dtype=getattr(torch, self.dtype),
            block=self.block if fits else page, inputs=self.inputs, seed=self.seed,
        )  # fmt: skip

    def course(self, program: Program) -> Course:
        return drawn_course(self.case(program), self.layers, self.steps)

    def __str__(self) -> str:
        given = [(f, getattr(self, f.name)) for f in fields(self)]
        return f"Setting({', '.join(f'{f.name}={value!r}' for f, value in given if value != f.default)})"

    def smaller(self, page: int) -> Iterator[Setting]:
        """Settings that differ in one respect, the greatest changes first."""
        if len(self.lengths) > 1:
            yield from (replace(self, lengths=(length,)) for length in self.lengths)
            for row in range(len(self.lengths)):
                yield replace(self, lengths=self.lengths[:row] + self.lengths[row + 1 :])
        if self.latent:
            yield replace(self, latent=0, head_dim=4)
            if self.latent > 8:
                yield replace(self, latent=8, head_dim=12)
        if self.layer:
            yield replace(self, layer=0)
        for name in ("layers", "steps", "kv_heads", "group"):
            value = getattr(self, name)
            least = self.layer + 1 if name == "layers" else 1
            for less in sorted({least, 2, value // 2, value - 1}):
                if least <= less < value:
                    yield replace(self, **{name: less})
        if not self.latent:
            yield from (replace(self, head_dim=width) for width in _HEAD_DIMS if width < self.head_dim)
        for row, length in enumerate(self.lengths):
            for less in sorted({length // 2, length // 4, length - page, length - 1, 2 * page + 1, page + 1}):
                if 1 <= less < length:
                    yield replace(self, lengths=(*self.lengths[:row], less, *self.lengths[row + 1 :]))
        for name in ("kind", "dtype", "block"):
            plain = Setting.__dataclass_fields__[name].default
            if getattr(self, name) != plain:
                yield replace(self, **{name: plain})


Fails = Callable[[Program, Setting], bool]


@dataclass
class Shrunk:
    """The least that was found to fail; `tried` counts the runs, `finished` tells that nothing smaller fails."""

    text: str
    setting: Setting
    tried: int
    finished: bool

    @property
    def code_lines(self) -> int:
        return sum(1 for line in self.text.splitlines() if line.strip())


def shrink(program: Program, setting: Setting, fails: Fails, *, seconds: float = 120.0) -> Shrunk:
    """The smallest program and configuration that still fail, as far as greedy steps find them in about `seconds`.

    `program` is bound. Raises `VortexError` where it does not fail as the printer writes it.
    """
    return _Search(program, setting, fails, time.monotonic() + seconds).run()


class _TimeIsUp(Exception):
    pass


class _Search:
    def __init__(self, program: Program, setting: Setting, fails: Fails, end: float):
        self.text, self.setting, self.fails, self.end = to_source(program), setting, fails, end
        self.known: dict[tuple[str, Setting], bool] = {}
        if not self._holds(self.text, setting):
            raise VortexError(f"{program.name} no longer fails when it is printed with its knobs as numbers")

    def run(self) -> Shrunk:
        finished = False
        try:
            while self._settings() | self._programs():
                pass
            finished = True
        except _TimeIsUp:
            pass
        return Shrunk(self.text, self.setting, len(self.known), finished)

    def _holds(self, text: str, setting: Setting) -> bool:
        if (text, setting) not in self.known:
            if time.monotonic() > self.end and self.known:
                raise _TimeIsUp
            try:
                self.known[text, setting] = bool(self.fails(parse(text).bind(), setting))
            except Exception:  # a step may be no program, have no such configuration, or fail in another way
                self.known[text, setting] = False
        return self.known[text, setting]

    def _settings(self) -> bool:
        """Makes the configuration smaller as long as a step does; whether any did."""
        before = self.setting
        while found := self._smaller_setting():
            self.setting = found
        return self.setting != before

    def _smaller_setting(self) -> Setting | None:
        for one in self.setting.smaller(parse(self.text).bind().page_size):
            for seed in range(_SEEDS):
                drawn = one if seed == 0 else replace(one, inputs=seed, seed=seed)
                if self._holds(self.text, drawn):
                    return drawn
        return None

    def _programs(self) -> bool:
        """Makes the program smaller as long as an edit does; whether any did."""
        before, start = self.text, 0
        while True:
            for number, edited in itertools.islice(enumerate(edits(self.text)), start, None):
                text = normal(edited)
                if text is not None and size(text) < size(self.text) and self._holds(text, self.setting):
                    self.text, start = text, number
                    break
            else:
                if start == 0:
                    return self.text != before
                start = 0  # once more from the top: what came before may have become possible


def normal(text: str) -> str | None:
    """The text as the printer writes it, without dead code; None where it is no program."""
    try:
        return to_source(parse(text).bind())
    except (VortexError, SyntaxError):
        return None


def size(text: str) -> tuple[int, int, float]:
    """Falls with every step, so that there are finitely many: nodes, digits, numbers."""
    nodes = [node for node in ast.walk(ast.parse(text)) if not isinstance(node, (ast.expr_context, ast.arg))]
    numbers = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, (int, float))]
    return len(nodes), sum(len(repr(n)) for n in numbers), float(sum(abs(n) for n in numbers))


def edits(text: str) -> Iterator[str]:
    """Texts with one thing less, from the top down; most are no programs."""
    tree = ast.parse(text)
    program = next(node for node in tree.body if isinstance(node, ast.ClassDef))
    for statement in program.body:
        yield _without(tree, statement)
    for parent in [node for top in (program, *program.decorator_list) for node in ast.walk(top)]:
        for name, value in ast.iter_fields(parent):
            if isinstance(value, list):
                for place, child in enumerate(value):
                    if isinstance(parent, ast.Call):
                        setattr(parent, name, value[:place] + value[place + 1 :])
                        shorter = ast.unparse(tree)
                        setattr(parent, name, value)
                        yield shorter
                    if isinstance(child, ast.expr) and parent is not program:
                        for new in _replacements(child):
                            value[place] = new
                            edited = ast.unparse(tree)
                            value[place] = child
                            yield edited
            elif isinstance(value, ast.expr):
                for new in _replacements(value):
                    setattr(parent, name, new)
                    edited = ast.unparse(tree)
                    setattr(parent, name, value)
                    yield edited


def _replacements(node: ast.expr) -> Iterator[ast.expr]:
    """Smaller numbers, plain leaves, and the parts of the expression, the deepest first."""
    if isinstance(getattr(node, "ctx", None), ast.Store):
        return
    if isinstance(node, ast.Constant):
        number = node.value
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            tried = (0, 1, 2, number // 2, number - 1) if isinstance(number, int) else (0.0, 1.0)
            yield from (ast.Constant(n) for n in dict.fromkeys(tried) if 0 <= n < number)
        return
    if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(getattr(node, "value", None), (ast.Name, type(None))):
        parts: list[ast.expr] = []
    else:
        parts = [part for part in ast.walk(node) if isinstance(part, ast.expr) and part is not node]
    yield from (ast.parse(leaf, mode="eval").body for leaf in _LEAVES if leaf != ast.unparse(node))
    yield from reversed(parts)


def _without(tree: ast.Module, statement: ast.stmt) -> str:
    """The program without a declaration or method, and without what says so elsewhere."""
    left = copy.deepcopy(tree)
    program = next(node for node in left.body if isinstance(node, ast.ClassDef))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef)).body
    del program.body[body.index(statement)]
    gone = ""
    if isinstance(statement, ast.FunctionDef):
        gone = {"pool": "block"}.get(statement.name, "")
    elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        gone = statement.targets[0].id
        call = statement.value
        sets = isinstance(call, ast.Call) and any(isinstance(a, ast.Name) and a.id == "pages" for a in call.args)
        plain = ast.parse("first(1)" if sets else "0.0 * index(page)", mode="eval").body
        left = _Forget(gone, plain).visit(left)
    for node in ast.walk(left):
        if isinstance(node, ast.Call):
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != gone or not gone]
    program.body = [node for node in program.body if not _writes_nothing(node)]
    return ast.unparse(ast.fix_missing_locations(left))


class _Forget(ast.NodeTransformer):
    """Reads of the memory `name` become `plain`."""

    def __init__(self, name: str, plain: ast.expr):
        self.name, self.plain = name, plain

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        read = node.attr == self.name and isinstance(node.value, ast.Name) and node.value.id == "m"
        return copy.deepcopy(self.plain) if read else node


def _writes_nothing(node: ast.stmt) -> bool:
    if not isinstance(node, ast.FunctionDef) or node.name != "remember" or not isinstance(node.body[-1], ast.Return):
        return False
    written = node.body[-1].value
    return isinstance(written, ast.Call) and not written.keywords
