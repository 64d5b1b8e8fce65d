"""Hostile programs: text, names and numbers that attack the parser, the hashes or generated code.

Each attack has its expected verdict: a finding with its code, or (for copies) an equal hash, or (for names) generated
code in which the name does not occur.
"""

from __future__ import annotations

import ast
import builtins
import random
import re
import sys
from pathlib import Path

import pytest
from dsl_programs import program

from vortexlab.dsl import canonical_hash, check, limits, load, parse, structure_hash, to_source
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.search_spaces import seeds


def refused(text: str) -> set[str]:
    """The codes of the errors that refuse a text."""
    found, findings = check(text)
    assert found is None, "the attack was accepted"
    return {f.code for f in findings if f.severity == "error"}


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a text is read, Python runs none of it and imports nothing that it names."""

    def ran(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"the program's text was run: {args[:1]}")

    monkeypatch.setattr(ast, "literal_eval", ran)
    monkeypatch.setattr("os.system", ran)
    monkeypatch.setattr("subprocess.Popen", ran)
    monkeypatch.delitem(sys.modules, "antigravity", raising=False)


# ---- 1 Python in the program field

PYTHON = {
    "import call": ("__import__('os').system('true')", {"top-level"}),
    "import": ("import os\nos.system('true')", {"import"}),
    "in a method": (program("return __import__('os').system('true')"), {"unknown-function"}),
    "eval": (program("return eval('first(1)')"), {"unknown-function"}),
    "exec": (program("exec('import os')\nreturn first(1)"), {"not-in-language"}),
    "open": (program("return first(open('/etc/passwd'))"), {"unknown-function"}),
    "builtins": (program("return __builtins__.open"), {"unknown-name"}),
    "import in a method": (program("import antigravity\nreturn first(1)"), {"not-in-language"}),
    "import in the class": (program(body="import antigravity"), {"not-in-language"}),
    "walrus": (program("return first((x := 1))"), {"not-in-language"}),
    "comprehension": (program("return [first(i) for i in range(9)][0]"), {"not-in-language"}),
    "loop": (program("while True: x = 1\nreturn first(1)"), {"not-in-language"}),
    "print at import": ("print('x')\n" + program(), {"top-level"}),
    "no Python at all": ("Here is the program you asked for.", {"syntax"}),
}


@pytest.mark.parametrize(("text", "codes"), PYTHON.values(), ids=list(PYTHON))
def test_1_python_in_the_program(text: str, codes: set[str]) -> None:
    assert refused(text) == codes
    assert "antigravity" not in sys.modules


# ---- 2 dunder chains, format strings, decorators, defaults, annotations, class bodies

CHAINS = {
    "subclasses": (program("return ().__class__.__mro__[1].__subclasses__()"), {"not-in-language"}),
    "dunder of a value": (program("return first(ctx.layer.__class__)"), {"unknown-attribute"}),
    "dunder of ctx": (program("return first(ctx.__class__)"), {"unknown-member"}),
    "dunder of s": (program(summarize="return dict(c=k)", score="return s.__dict__"), {"unknown-member"}),
    "dunder summary": (program(summarize="return dict(__class__=k)"), {"mapping"}),
    "dunder knob": (program(body="__slots__ = 3"), {"name-taken"}),
    "dunder variable": (program("__x = 1\nreturn first(__x)"), {"name-taken", "unknown-name"}),
    "format": (program("return 'a{0.__class__}'.format(first(1))"), {"not-callable"}),
    "percent format": (program("return '%s' % first(1)"), {"text-as-value"}),
    "f-string": (program('return f"{first(1)}"'), {"string-prefix"}),
    "bytes": (program("return b'1'"), {"string-prefix"}),
    "decorator with a call": (program(options="page=__import__('os')"), {"whole-number"}),
    "another decorator": ("@exec\n" + program(), {"decorator"}),
    "decorated method": (program().replace("    def select", "    @exec\n    def select"), {"method-shape"}),
    "default": (program().replace("(ctx)", "(ctx=print(1))"), {"method-shape"}),
    "annotation": (program().replace("(ctx)", "(ctx: print(1))"), {"method-shape"}),
    "return annotation": (program().replace("(ctx):", "(ctx) -> print(1):"), {"method-shape"}),
    "base class": (program().replace("class P:", "class P(print(1)):"), {"class-bases"}),
    "metaclass": (program().replace("class P:", "class P(metaclass=type):"), {"class-bases"}),
    "class body": (program(body="print(1)"), {"not-in-language"}),
    "inner class": (program(body="class Q: pass"), {"not-in-language"}),
    "class loop": (program(body="for i in range(9): pass"), {"not-in-language"}),
    "constant call": (program(body="a = print(1)"), {"unknown-function"}),
    "lambda constant": (program(body="a = lambda: 1"), {"not-in-language"}),
    "knob smuggling": (program(body="a = knob.int.__globals__"), {"unknown-name"}),
    "knob subclass": (program(body="a = knob.__class__(1, 2, default=1)"), {"knob-kind"}),
    "star": (program("return first(*[1])"), {"not-in-language"}),
    "double star": (program("return first(**ctx)"), {"not-in-language"}),
    "async": (program().replace("def select", "async def select"), {"not-in-language"}),
    "global": (program("global x\nreturn first(1)"), {"not-in-language"}),
    "try": (program("try: x = 1\nexcept Exception: x = 2\nreturn first(1)"), {"not-in-language"}),
    "match": (program("match ctx:\n    case _: x = 1\nreturn first(1)"), {"not-in-language"}),
    "yield": (program("yield first(1)\nreturn first(1)"), {"not-in-language"}),
}


@pytest.mark.parametrize(("text", "codes"), CHAINS.values(), ids=list(CHAINS))
def test_2_ways_around_the_whitelist(text: str, codes: set[str]) -> None:
    assert codes <= refused(text)


# ---- 3 characters that lie

CHARACTERS = {
    "ligature": ("return \ufb01rst(1)", "name-not-ascii"),
    "full width": ("return \uff46irst(1)", "name-not-ascii"),
    "cyrillic": ("return first(p\u0430ge)", "name-not-ascii"),
    "mathematical": ("return \U0001d41first(1)", "name-not-ascii"),
    "digits of another script": ("return first(\u0661)", "name-not-ascii"),
    "zero width space": ("return fi\u200brst(1)", "hidden-character"),
    "zero width joiner": ("return fi\u200drst(1)", "hidden-character"),
    "byte order mark": ("return first(\ufeff1)", "hidden-character"),
    "bidi override": ("return first(1) # \u202e )1(tsrif", "hidden-character"),
    "bidi isolate": ("return first(1) # \u2067", "hidden-character"),
    "nul": ("return first(1)\0", "hidden-character"),
    "escape": ("return first(1) # \x1b[2J", "hidden-character"),
    "lone carriage return": ("return first(1) # \rreturn last(1)", "hidden-character"),
    "line separator": ("return first(1) # \u2028return last(1)", "hidden-character"),
    "tag characters": ("return first(1) # \U000e0041", "hidden-character"),
    "variation selector": ("return first(1) # a\ufe0f", "hidden-character"),
    "surrogate": ("return first(1) # \ud800", "hidden-character"),
    "private use": ("return first(1) # \ue000", "hidden-character"),
    "combining": ("return first(1) # e\u0301", "not-normalised"),
    "kelvin": ("return first(1) # \u212a", "not-normalised"),
    "no-break space": ("return\u00a0first(1)", "stray-character"),
}


@pytest.mark.parametrize(("select", "code"), CHARACTERS.values(), ids=list(CHARACTERS))
def test_3_characters_that_lie(select: str, code: str) -> None:
    assert refused(program(select)) == {code}


@pytest.mark.parametrize("line", ["# -*- coding: utf-7 -*-", "# vim: set fileencoding=rot13 :", "\n#coding=latin-1"])
def test_3_encoding_cookies(line: str) -> None:
    assert refused(line + "\n" + program()) == {"coding-cookie"}


# ---- 4 nesting bombs and size

BOMBS = {
    "brackets": ("(" * 100_000, {"text-too-long"}),
    "brackets within the size": (program("return first(\\\n" + "(\n" * 1_500), {"nesting-too-deep"}),
    "mixed brackets": (program("return first(" + "([{" * 60), {"nesting-too-deep"}),
    "brackets reset by comments": (program("return first(\n" + "(((((\n#)))))\n" * 60), {"nesting-too-deep"}),
    "brackets reset by strings": (program("return first(\n" + "((((')))')\n" * 60), {"nesting-too-deep"}),
    "100 MB line": ("a" * 10**8, {"text-too-long"}),
    "long line": ("x = " + "1 + " * 4_000 + "1", {"line-too-long"}),
    "million nodes": ("x\n" * 9_000, {"too-many-tokens"}),
    "sum": (program("return first(" + "+".join("1" * 180) + ")"), {"expression-too-deep"}),
    "not": (program("return " + "not " * 190 + "True"), {"expression-too-deep"}),
    "minus": (program("return first(" + "-" * 390 + "1)"), {"expression-too-deep", "statement-too-long"}),
    "attributes": (program("return ctx" + ".a" * 150), {"expression-too-deep"}),
    "calls": (program("return " + "abs(" * 300 + "1" + ")" * 300), {"line-too-long", "nesting-too-deep"}),
    "indentation": ("".join(" " * i + "if 1:\n" for i in range(110)), {"syntax"}),
    "doubling": (program("\n".join(["x = first(1) | last(2)", *["x = x & ~x | x"] * 200, "return x"])),
                 {"program-too-large"}),
    "doubling constants": (program("return first(a40)", body="a0 = 1.5\n" + "\n".join(
        f"a{i + 1} = a{i} * a{i} + a{i}" for i in range(40))), {"count-not-int"}),
}  # fmt: skip


@pytest.mark.parametrize(("text", "codes"), BOMBS.values(), ids=list(BOMBS))
def test_4_nesting_bombs_and_size(text: str, codes: set[str]) -> None:
    found = refused(text)
    assert len(found) == 1 and found <= codes


def test_4_limits_bound_bytes_tokens_depth_nodes_and_names() -> None:
    assert limits.MAX_BYTES <= 200_000 and limits.MAX_TOKENS <= 10_000 and limits.MAX_BRACKETS <= 100
    assert limits.MAX_NODES <= 10_000 and sys.getrecursionlimit() > limits.MAX_DEPTH * 8 and limits.MAX_NAME <= 100


# ---- 5 number bombs

NUMBERS = {
    "power tower": (program("return first(9**9**9)"), {"not-in-language"}),
    "shift": (program("return first(1 << 999999999)"), {"not-in-language"}),
    "repeated text": (program("return first('a' * 999999999)"), {"text-as-value"}),
    "ten million digits": (program("return first(" + "9" * 10**7 + ")"), {"text-too-long"}),
    "five hundred digits": (program("return first(" + "9" * 500 + ")"), {"number-too-long"}),
    "digits with underscores": (program("return first(" + "9_" * 200 + "9)"), {"number-too-long"}),
    "hexadecimal": (program("return first(0x" + "f" * 30 + ")"), {"number-too-long"}),
    "large int": (program("return first(99999999999)"), {"number-range"}),
    "overflow": (program("return first(floor(1e400))"), {"number-range"}),
    "denormal": (program("return first(floor(1e-310))"), {"number-range"}),
    "complex": (program("return first(1j)"), {"not-in-language"}),
    "nan": (program("return first(floor(nan))"), {"unknown-name"}),
    "infinity by name": (program('return first(floor(float("inf")))'), {"text-as-value"}),
    "lo above hi": (program(body="a = knob.int(9, 1, default=3)"), {"knob-range"}),
    "step 0": (program(body="a = knob.int(1, 9, step=0, default=3)"), {"knob-range"}),
    "negative step": (program(body="a = knob.float(0.0, 1.0, step=-0.5, default=0.5)"), {"knob-range"}),
    "log from 0": (program(body="a = knob.float(0.0, 1.0, log=True, default=0.5)"), {"knob-range"}),
    "log below 0": (program(body="a = knob.int(-4, 9, log=True, default=3)"), {"knob-range"}),
    "nan in a knob": (program(body="a = knob.float(0.0, nan, default=0.5)"), {"literal"}),
    "infinite knob": (program(body="a = knob.float(0.0, 1e999, default=0.5)"), {"number-range"}),
    "huge knob": (program(body="a = knob.int(0, 99999999999, default=5)"), {"number-range"}),
    "computed knob": (program(body="a = knob.int(0, 2 ** 9, default=5)"), {"literal"}),
    "knob of many choices": (program(body=f"a = knob.choice({', '.join(map(str, range(99)))})"), {"knob-values"}),
    "page of 0": (program(options="page=0"), {"whole-number"}),
    "page of a million": (program(options="page=1000000"), {"whole-number"}),
    "page knob of 0": (program(options="page=knob.int(0, 64, default=16)"), {"page-size"}),
    "seed below 0": (program(options="seed=-1"), {"whole-number"}),
    "truth value as a page": (program(options="page=True"), {"whole-number"}),
    "split by 0": (program(summarize="return dict(c=k.split(token, part=0))"), {"split-size"}),
    "split by a million": (program(summarize="return dict(c=k.split(token, part=1000000))"), {"split-size"}),
}


@pytest.mark.parametrize(("text", "codes"), NUMBERS.values(), ids=list(NUMBERS))
def test_5_number_bombs(text: str, codes: set[str]) -> None:
    assert refused(text) == codes


def test_5_zero_has_one_sign() -> None:
    negative = parse(program("return first(floor(x))", body="x = knob.float(-0.0, 1.0, default=-0.0)"))
    positive = parse(program("return first(floor(x))", body="x = knob.float(0.0, 1.0, default=0.0)"))
    assert canonical_hash(negative) == canonical_hash(positive)
    assert str(negative.knobs["x"].default) == "0.0"
    assert str(parse(program("return first(floor(-0.0))")).nodes[0].attrs["value"]) == "0.0"


def test_5_arithmetic_on_constants_stays_bounded() -> None:
    """Squaring a constant forty times is a program; its value saturates instead of growing."""
    body = "a0 = 2147483647\n" + "\n".join(f"a{i + 1} = a{i} * a{i}" for i in range(40))
    text = program("return first(a40)", body=body)
    assert len(canonical_hash(parse(text))) == 64


# ---- 6 regular expressions, colliding and duplicate keys


def test_6_the_lexer_does_not_backtrack() -> None:
    """Starts of tokens that never end, at the size limit: an exponential or cubic lexer would never return."""
    line = limits.MAX_LINE - 1
    for piece in ('"', "'", '"""', "'\\", '""""', "1e", "1_", "a'", "rb", "\\", "0x", "...", "# coding", "( ", '"\\\n'):
        body = (piece * line)[:line]
        text = "\n".join([body] * (limits.MAX_BYTES // (line + 1)))
        assert check(text)[0] is None


def test_6_names_that_collide_in_a_hash_table_are_ordinary_names() -> None:
    names = [f"n{i}" for i in range(300)]
    body = "\n".join(f"{name} = {i}" for i, name in enumerate(names))
    found, findings = check(program("return first(n299)", body=body))
    assert found is not None and {f.code for f in findings} == {"unused-variable"}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (program(summarize='return {"a": k, "a": v}'), "mapping"),
        (program(summarize="return dict(a=k, a=v)"), "mapping"),
        (program(body="a = 1\na = 2"), "name-taken"),
        (program(options="page=16, page=32"), "argument-count"),
        (program(body="a = knob.int(1, 9, default=3, default=4)"), "argument-count"),
        (program("return topk(ctx.layer, n=1, n=2)"), "argument-count"),
        (program().replace("(ctx)", "(ctx, ctx)"), "method-shape"),
        (program() + "    def select(ctx):\n        return last(1)\n", "method-twice"),
    ],
)
def test_6_duplicate_keys(text: str, code: str) -> None:
    assert refused(text) == {code}


# ---- 7 a program reads no files


@pytest.mark.parametrize(
    "text",
    [
        "from vortexlab.dsl import *\nfrom .secrets import *\n" + program(),
        "from vortexlab.dsl.parser import load\n" + program(),
        "import vortexlab.dsl\n" + program(),
        "from vortexlab.dsl import load as topk\n" + program(),
        program("return load('../../etc/passwd')"),
        program("return first(include('/proc/self/environ'))"),
        program(options='page=16, include="../../secrets.py"'),
        program(summarize="return dict(c=k.load('/proc/self/environ'))"),
    ],
)
def test_7_includes_and_paths(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*args: object, **kwargs: object) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(builtins, "open", opened)
    monkeypatch.setattr(Path, "open", opened)
    assert refused(text) <= {"import", "unknown-function", "unknown-argument"}


def test_7_a_path_to_something_else_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "loop", "/dev/zero", "/proc/self/environ", "a\0b", tmp_path, "x" * 5_000):
        with pytest.raises(VortexError) as raised:
            load(path)
        assert "\n" not in str(raised.value)


# ---- 8 copies in disguise


def _disguise(text: str, rng: random.Random) -> str:
    """Other names, comments, unused knobs and summaries, repeated work: the same program to look new."""
    found = parse(text)
    names = [*(name for name in found.knobs if name not in ("page", "reduce")), *found.fields]
    for name in sorted(names, key=len, reverse=True):
        new = "".join(rng.choice("abcdefgh") for _ in range(9))
        text = re.sub(rf"(?<![\w]){name}\b(?!\()", new, text)
    text = re.sub(r"^(    def .*?\)): (return .*)$", r"\1:\n        \2", text, flags=re.MULTILINE)  # one line each
    lines = []
    for line in text.split("\n"):
        lines.append(line + "  # " + str(rng.random()))
        if "A new idea" in line:
            lines.append(f"    x{rng.randrange(10**6)} = knob.int(1, {rng.randint(2, 99)}, default=1)")
        if "def summarize" in line:
            lines.append("        nothing = k.sum(token, channel) * 2.0")
    return "\n".join(lines).replace("class ", "class Brand_new_").replace("Brand_new_", "Z", 1)


@pytest.mark.parametrize("name", list(seeds()))
def test_8_disguised_copies_have_the_same_hash(name: str) -> None:
    rng = random.Random(name)
    original = parse(seeds()[name])
    text = re.sub(r'"""(.|\n)*?"""', '"""A new idea."""', seeds()[name])
    copy = parse(_disguise(text, rng))
    assert copy.name != original.name and copy.source != original.source
    assert canonical_hash(copy) == canonical_hash(original)
    assert structure_hash(copy) == structure_hash(original)
    assert canonical_hash(parse(to_source(copy.bind()))) == canonical_hash(original.bind())


# ---- 10 names that collide with generated code or go into it

HOSTILE_NAMES = ["tl", "triton", "torch", "page_id", "program_id", "jit", "constexpr", "scores_ptr", "kernel", "BLOCK",
                 "acc", "mask", "offs", "x0", "t0", "f0", "N", "pid", "tmp", "grid", "asm", "inline_asm_elementwise",
                 "assert_", "lambda_", "self", "cls", "import_", "float32", "none", "PAGE", "GROUP"]  # fmt: skip

NAMED = """
@program(page=16)
class {cls}:
    '''{doc}'''
    {knob} = knob.int(1, 64, default=8)

    def summarize(k):
        return dict({a}=k.split(token, {axis}=4).min(token), {b}=k.mean(token))

    def score(q, s):
        return dict({c}=dot(q, s.{a}, channel).max({axis}).max(head), {d}=dot(q, s.{b}, channel).max(head))

    def select(score):
        return topk(score.{c} + score.{d}, {knob}) | random({knob})
"""


def _named(names: list[str], doc: str = "x") -> Program:
    """Names in their order, so that nothing but their letters changes; fields must not change places."""
    a, b = sorted(names[:2])
    keys = dict(cls=names[2], knob=names[3], a=a, b=b, axis=names[4], c=names[5], d=names[6], doc=doc)
    return parse(NAMED.format(**keys)).bind()


@pytest.mark.parametrize("start", range(0, len(HOSTILE_NAMES) - 6, 4))
def test_10_names_do_not_reach_generated_code(start: int) -> None:
    from vortexlab.kernels.gpu.codegen import generate

    static = Static(kv_heads=2, group=2, head_dim=32, scale=0.25)
    doc = "tl.inline_asm_elementwise @triton.jit import os"
    hostile = generate(_named(HOSTILE_NAMES[start : start + 7], doc), static, "fp16", "fp16")
    plain = generate(_named(["aa", "bb", "Plain", "cc", "dd", "ee", "ff"]), static, "fp16", "fp16")
    assert hostile.text == plain.text
    assert doc not in hostile.text


def test_10_text_in_the_stored_form_does_not_reach_generated_code() -> None:
    """Whoever edits the stored form of a program injects nothing either: names of summaries, axes and the class."""
    from vortexlab.kernels.gpu.codegen import generate

    static = Static(kv_heads=2, group=2, head_dim=32, scale=0.25)
    plain = _named(["aa", "bb", "Plain", "cc", "dd", "ee", "ff"])
    injected = "aa)\nimport os\nos.system('true') #"
    data = plain.to_json()
    data["name"], data["doc"], data["source"] = injected, injected, injected
    data["fields"] = {injected if name == "aa" else name: node for name, node in data["fields"].items()}
    for node in data["nodes"]:
        node["axes"] = [injected if axis == "dd" else axis for axis in node["axes"]]
        node["attrs"] = {key: injected if value in ("aa", "dd") else value for key, value in node["attrs"].items()}
    hostile = Program.from_json(data)
    assert generate(hostile, static, "fp16", "fp16").text == generate(plain, static, "fp16", "fp16").text
