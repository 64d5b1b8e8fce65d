"""Texts that want to be expensive, invisible or mistaken for something else, and what must be said about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dsl_programs import program

from vortexlab.dsl import limits


@dataclass(frozen=True)
class Hostile:
    """`code` is None where the text is harmless and accepted; `says` is part of message or hint."""

    name: str
    code: str | None
    says: str
    text: Callable[[], str]


def _summary(lines: str, **more: str) -> str:
    return program(summarize=lines + "return dict(c=x)", score="return s.c.max(token)", select="return topk(score, 4)",
                   **more)  # fmt: skip


_SQUARED = "x = (x * x.rename(token, twin)).merge(token, twin, into=token)\n"
_KNOBS = "\n".join(f"a{i} = knob.int(1, 9, default=2)" for i in range(6))
_CUT = "".join(f"x = concat(x, x.slice(token, 0, a{i}), token)\n" for i in range(6))

HOSTILE = [
    # long
    Hostile("200 KB of assignments", "text-too-long", "a few dozen lines", lambda: "x = 1\n" * 33_334),
    Hostile("100000 brackets", "text-too-long", "too long", lambda: "(" * 100_000 + ")" * 100_000),
    Hostile("a number of 10000000 digits", "text-too-long", "too long", lambda: "x = " + "9" * 10**7),
    Hostile("100000 attributes", "text-too-long", "too long", lambda: "x = a" + ".b" * 100_000),
    Hostile("100000 lines of assignments", "text-too-long", "too long", lambda: "a = 1\n" * 100_000),
    Hostile("a line of 1001 characters", "line-too-long", "break it", lambda: "#" * (limits.MAX_LINE + 1)),
    Hostile("20 KB on one line", "line-too-long", "break it", lambda: "x = " + "9" * 19_000),
    Hostile("5001 tokens", "too-many-tokens", "5000", lambda: "a\n" * (limits.MAX_TOKENS + 1)),
    Hostile("a sum of 450 terms", "statement-too-long", "give parts", lambda: "x = 1" + "+1" * 450),
    Hostile("brackets nested 33 deep", "nesting-too-deep", "give parts", lambda: "x = " + "(" * 33 + "1" + ")" * 33),
    Hostile("brackets nested on 900 lines", "nesting-too-deep", "give parts",
             lambda: "x = (\n" + "(" * 20 + "\n(" * 900),
    Hostile("a number of 900 digits", "number-too-long", "too many digits", lambda: "x = " + "9" * 900),
    Hostile("a name of 65 letters", "name-too-long", "shorten", lambda: "x" * 65),
    Hostile("150 attributes", "expression-too-deep", "give parts", lambda: "x = a" + ".b" * 150),
    Hostile("minus written 150 times", "expression-too-deep", "give parts", lambda: "x = " + "~-" * 75 + "1"),
    Hostile("branches nested 120 deep", "syntax", "", lambda: "".join(" " * i + "if 1:\n" for i in range(120))),
    Hostile("2500 names on a few lines", "too-many-nodes", "few dozen", lambda: ("a;" * 190 + "a\n") * 13),
    # expensive to read
    Hostile("20 KB of unknown names", "unknown-name", "declare it", lambda: program(
        "\n".join(f"b{i} = zqxj{i}" for i in range(700)))),
    Hostile("20 KB of unknown names in the class", "unknown-name", "declare it", lambda: program(
        body="\n".join(f"aaaa{i} = aaab{i}" for i in range(700)))),
    Hostile("20 KB of methods", "unknown-method", "known here", lambda: "@program(page=16)\nclass P:\n" + "".join(
        f"    def m{i}(): return 1\n" for i in range(650))),
    Hostile("long names that are nearly known", "unknown-name", "declare it", lambda: program(
        "\n".join(f"{'a' * 50}{i} = 1" for i in range(200)) + "\n" + "\n".join(
            f"b = {'a' * 45}b{i}" for i in range(25)))),
    Hostile("an operation on an operation, 380 times", "program-too-large", "simplify", lambda: program(
        "x = ctx.length\n" + "x = x + x\n" * 380 + "return first(x)")),
    Hostile("an axis squared 40 times", "value-size", "becomes too large", lambda: _summary(
        "x = k.max(channel)\n" + _SQUARED * 40)),
    Hostile("an axis doubled 300 times", "value-size", "becomes too large", lambda: _summary(
        "x = k.max(channel)\n" + "x = concat(x, x, token)\n" * 300)),
    Hostile("a length that is a polynomial of six knobs", "value-size", "becomes too large", lambda: _summary(
        "x = k.max(channel)\n" + _CUT + _SQUARED * 6, body=_KNOBS)),
    Hostile("300 windows in windows", "value-size", "becomes too large", lambda: _summary(
        "x = k\n" + "".join(f"x = x.window(token, w{i}=2)\n" for i in range(300)))),
    Hostile("350 slices between knobs", "unused-variable", "", lambda: _summary(
        "x = k.max(channel)\n" + "".join(f"y{i} = k.slice(token, a, b)\n" for i in range(350)),
        options="page=knob.int(32, 63, default=32)",
        body="a = knob.int(0, 15, default=0)\nb = knob.int(16, 31, default=16)")),
    Hostile("a number squared 60 times", None, "", lambda: program(
        "n = 9 + ctx.layer\n" + "n = n * n\n" * 60 + "return reuse(first(1), layers=n > 0)")),
    Hostile("a tower of powers", "not-in-language", "x * x", lambda: program("return first(9 ** 9 ** 9)")),
    Hostile("a number beyond double precision", "number-range", "outside the range", lambda: program(
        "return first(floor(1e400))")),
    Hostile("escapes of named characters", None, "",
             lambda: '"""' + ("\\N{DIGIT ONE}" * 70 + "\n") * 15 + '"""\n' + program()),
    # invisible
    Hostile("a null byte", "hidden-character", "remove it", lambda: program("return first(1)\0")),
    Hostile("a byte order mark", "hidden-character", "byte order mark", lambda: "\ufeff" + program()),
    Hostile("a lone surrogate", "hidden-character", "U+D800", lambda: program("return first(1) # \ud800")),
    Hostile("a bidirectional override", "hidden-character", "U+202E", lambda: program("return first(1) # \u202e 1")),
    Hostile("a bidirectional isolate", "hidden-character", "U+2066", lambda: program("return first(1) # \u2066 1")),
    Hostile("a zero-width space", "hidden-character", "U+200B", lambda: program("return fir\u200bst(1)")),
    Hostile("a zero-width joiner", "hidden-character", "U+200D", lambda: program("return fir\u200dst(1)")),
    Hostile("a tag character", "hidden-character", "U+E0041", lambda: program("return first(1) # \U000e0041")),
    Hostile("a line separator", "hidden-character", "U+2028", lambda: program("return first(1) # \u2028x = 1")),
    Hostile("an escape sequence of terminals", "hidden-character", "U+001B",
             lambda: program("return first(1) # \x1b[2J")),
    Hostile("a carriage return inside a line", "hidden-character", "line feed",
             lambda: program("return first(1) # \rx")),
    Hostile("a combining accent", "not-normalised", "composed letter", lambda: program("return first(1) # e\u0301")),
    Hostile("an Angstrom sign", "not-normalised", "U+212B", lambda: program("return first(1) # \u212b")),
    # mistaken for something else
    Hostile("a Cyrillic letter", "name-not-ascii", "look alike", lambda: program("return first(\u0440age)")),
    Hostile("a ligature", "name-not-ascii", "look alike", lambda: program("return \ufb01rst(1)")),
    Hostile("full-width letters", "name-not-ascii", "look alike", lambda: program("return \uff46irst(1)")),
    Hostile("full-width digits", "name-not-ascii", "look alike", lambda: program("return first(\uff11)")),
    Hostile("mathematical letters", "name-not-ascii", "look alike", lambda: program("return \U0001d41frst(1)")),
    Hostile("an emoji", "stray-character", "no meaning", lambda: program("return first(\U0001f600)")),
    Hostile("a full-width bracket", "stray-character", "no meaning", lambda: program("return first\uff081)")),
    Hostile("a no-break space", "stray-character", "no meaning", lambda: program("return\u00a0first(1)")),
    Hostile("an encoding in which text means other text", "coding-cookie", "remove",
             lambda: "# coding: utf-7\n" + program()),
    Hostile("a file without a class", "no-class", "class", lambda: '"""nothing"""\n'),
    Hostile("no text at all", "no-class", "class", lambda: ""),
    Hostile("tabs and spaces", "syntax", "indent", lambda: program().replace("        return", "\treturn")),
    # harmless
    Hostile("line ends of Windows", None, "", lambda: program().replace("\n", "\r\n")),
    Hostile("tabs", None, "", lambda: program().replace("    ", "\t")),
    Hostile("letters of other languages in comments", None, "",
             lambda: "# q\u00b7k / \u221ad, \u00e9, \u6f22\u5b57, \U0001f600\n" + program()),
    Hostile("no line end at the end", None, "", lambda: program().rstrip("\n")),
]  # fmt: skip
