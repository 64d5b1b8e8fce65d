"""Attacks 1 to 10: programs that are text for something else than the parser, too large, or somebody else's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator

from vortexlab.dsl import canonical_hash, check, parse, structure_hash
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.evaluator.attacks.attack import REFUSED, Attack, rejected

SAME = "same program"


def program(select: str = "return first(1)", body: str = "spare = 4", options: str = "page=16") -> str:
    lines = "\n        ".join(select.split("\n"))
    inner = "\n    ".join(body.split("\n"))
    return f"@program({options})\nclass P:\n    {inner}\n\n    def select(ctx):\n        {lines}\n"


SCORED = """@program(page=16)
class {cls}:
    {doc}
    {knob} = knob.int(1, 64, default=8)

    def summarize(k):
        {extra}return dict({a}=k.min(token), {b}=k.max(token))

    def score(q, s):
        return maximum(q * s.{a}, q * s.{b}).sum(channel).max(head)

    def select(score):
        return topk(score, {knob}) | first(1)
"""


def _scored(**names: str) -> str:
    plain = {"cls": "Plain", "doc": '"""x"""', "knob": "budget", "a": "hi", "b": "lo", "extra": ""}
    return SCORED.format(**plain | names)


def _refused(text: str) -> str:
    """What reading a text comes to; nothing of it may be imported on the way."""
    before = set(sys.modules)
    found, findings = check(text)
    if {name for name in set(sys.modules) - before if not name.startswith("vortexlab")} & {"antigravity", "this"}:
        return "accepted: it was run"
    return "accepted" if found is not None or not findings else REFUSED


def _texts(*texts: tuple[str, str]) -> Callable[[], Iterable[tuple[str, str]]]:
    return lambda: ((name, _refused(text)) for name, text in texts)


def _copies() -> Iterator[tuple[str, str]]:
    original = parse(_scored())
    for name, text in (
        ("renamed", _scored(cls="New", knob="count", a="aa", b="bb")),
        ("commented", _scored(doc='"""A new idea."""\n    # and a comment')),
        ("padded with dead code", _scored(extra="unused = k.sum(token, channel) * 2.0\n        ")),
        ("with knobs that nothing uses", _scored(doc='"""x"""\n    other = knob.int(1, 9, default=3)')),
    ):
        copy = parse(text)
        same = canonical_hash(copy) == canonical_hash(original) and structure_hash(copy) == structure_hash(original)
        yield name, SAME if same else "accepted as another program"


def _compile_bombs() -> Iterator[tuple[str, str]]:
    """Kernels that no GPU can hold; the compiler has limits of its own, in time and in memory."""
    import tempfile
    from pathlib import Path

    from vortexlab.evaluator import compiling

    static = Static(kv_heads=8, group=4, head_dim=128, scale=0.1)
    wide = parse(
        "@program(page=256)\nclass P:\n    def summarize(k):\n        return dict(c=k)\n"
        "    def score(q, s):\n        return (q * s.c.rename(token, one)).max(one).sum(channel).max(head)\n"
        "    def select(score):\n        return topk(score, 4)\n"
    ).bind()
    with tempfile.TemporaryDirectory(prefix="vortex-range-") as folder:
        try:
            found = compiling.report(wide, static, ["sm_90"], "bf16", Path(folder) / "kept")
            yield "a summary as large as its page", rejected("compile") if found["failure"] else "accepted"
        except VortexError:
            yield "a summary as large as its page", rejected("compile")


def _named(hostile: bool) -> Program:
    """A program whose stored form was edited, so that its names hold code."""
    found = parse(_scored()).bind()
    if not hostile:
        return found
    injected = "hi)\nimport os\nos.system('true') #"
    data = found.to_json()
    data["name"] = data["doc"] = data["source"] = injected
    data["fields"] = {injected if name == "hi" else name: node for name, node in data["fields"].items()}
    for node in data["nodes"]:
        node["attrs"] = {key: injected if value == "hi" else value for key, value in node["attrs"].items()}
    return Program.from_json(data)


def _injections() -> Iterator[tuple[str, str]]:
    from vortexlab.kernels.gpu.codegen import generate

    static = Static(kv_heads=2, group=2, head_dim=32, scale=0.25)
    plain = generate(_named(False), static, "fp16", "fp16").text
    edited = generate(_named(True), static, "fp16", "fp16").text
    yield "code in the names of the stored form", SAME if edited == plain else "accepted: names reach generated code"
    for names in (("tl", "triton"), ("kernel", "pid"), ("BLOCK", "acc")):
        other = generate(parse(_scored(a=min(names), b=max(names))).bind(), static, "fp16", "fp16").text
        yield " ".join(names), SAME if other == plain else "accepted: names reach generated code"


def _attack(number: int, tries: str, expected: str, wall: str, run: Callable[[], Iterable[tuple[str, str]]]) -> Attack:
    return Attack(f"A{number}", "text", tries, expected, wall, run)


_WALL = "grammar and whitelist"
ATTACKS = (
    _attack(1, "Python in the place of a program", REFUSED, _WALL, _texts(
        ("call", "__import__('os').system('true')"), ("import", "import antigravity\n" + program()),
        ("eval", program("return eval('first(1)')")), ("exec", program("exec('import this')\nreturn first(1)")),
        ("open", program("return first(open('/etc/passwd'))")), ("prose", "Here is the program you asked for."))),
    _attack(2, "dunder chains, format strings, decorators, defaults, annotations, bases", REFUSED, _WALL, _texts(
        ("subclasses", program("return ().__class__.__mro__[1].__subclasses__()")),
        ("format", program("return 'a{0.__class__}'.format(first(1))")), ("f-string", program('return f"{first(1)}"')),
        ("decorator", "@exec\n" + program()), ("default", program().replace("(ctx)", "(ctx=print(1))")),
        ("annotation", program().replace("(ctx)", "(ctx: print(1))")),
        ("base", program().replace("class P:", "class P(print(1)):")), ("class body", program(body="print(1)")),
        ("knob", program(body="a = knob.__class__(1, 2, default=1)")))),
    _attack(3, "characters that lie: ligatures, zero width, bidi, NUL, encoding cookies", REFUSED, "lexer", _texts(
        ("ligature", program("return \ufb01rst(1)")), ("zero width", program("return fi\u200brst(1)")),
        ("bidi", program("return first(1) # \u202e 1")), ("NUL", program("return first(1)\0")),
        ("cookie", "# coding: utf-7\n" + program()), ("cyrillic", program("return first(p\u0430ge)")))),
    _attack(4, "nesting bombs, 100 MB on a line, too many tokens and nodes", REFUSED, "limits before parsing", _texts(
        ("brackets", "(" * 100_000), ("deep", program("return first(\\\n" + "(\n" * 1_500)),
        ("100 MB", "a" * 10**8), ("tokens", "x\n" * 9_000),
        ("sum", program("return first(" + "+".join("1" * 180) + ")")),
        ("doubling", program("\n".join(["x = first(1) | last(2)", *["x = x & ~x | x"] * 200, "return x"]))))),
    _attack(5, "number bombs: towers, digits, infinities, ranges upside down", REFUSED, "limits on numbers", _texts(
        ("tower", program("return first(9**9**9)")), ("digits", program("return first(" + "9" * 500 + ")")),
        ("ten million digits", program("return first(" + "9" * 10**7 + ")")),
        ("overflow", program("return first(floor(1e400))")), ("nan", program("return first(floor(nan))")),
        ("range", program(body="a = knob.int(9, 1, default=3)")),
        ("step 0", program(body="a = knob.int(1, 9, step=0, default=3)")),
        ("log of 0", program(body="a = knob.float(0.0, 1.0, log=True, default=0.5)")))),
    _attack(6, "text that a regular expression chokes on, keys given twice", REFUSED, "linear lexer", _texts(
        *((piece, "\n".join([(piece * 900)[:900]] * 20)) for piece in ('"', "'\\", '"""', "1e", "a'", '"\\\n')),
        ("keys", program(body="a = 1\na = 2")), ("arguments", program(options="page=16, page=32")))),
    _attack(7, "imports, includes and paths", REFUSED, _WALL, _texts(
        ("relative", "from .secrets import *\n" + program()), ("ours", "import vortexlab.dsl\n" + program()),
        ("load", program("return load('../../etc/passwd')")),
        ("include", program("return first(include('/proc/self/environ'))")))),
    _attack(8, "copies in disguise: renamed, commented, padded", SAME, "canonical hash", _copies),
    _attack(9, "kernels that no GPU holds and no compiler ends with", rejected("compile"), "compile gate",
            _compile_bombs),
    _attack(10, "names that collide with generated code, or hold code", SAME, "names minted by the generator",
            _injections),
)  # fmt: skip
