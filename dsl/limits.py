"""What a program's text may look like, checked before any parser sees it.

The checks are one pass over the text with a lexer of our own, stop at the first offence, and look at nothing beyond
the size limit, so hostile input costs milliseconds and no recursion. Python's parser then turns what is left into a
syntax tree; the text is never compiled or run.
"""

from __future__ import annotations

import ast
import re
import unicodedata
import warnings
from dataclasses import dataclass

from vortexlab.dsl.errors import Diagnostic, ProgramError

MAX_BYTES = 20_000
MAX_LINE = 1_000
MAX_BRACKETS = 32
MAX_TOKENS = 5_000
MAX_STATEMENT = 400  #: tokens of one statement: bounds the depth of operators written without brackets
MAX_NAME = 64
MAX_NUMBER = 24  #: characters of one number as written
MAX_NODES = 5_000
MAX_DEPTH = 60  #: levels of the syntax tree; the evaluator recurses at most this deep

#: One token. Every alternative starts with a different character or has a fixed length, so matching is linear.
_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\f]+)
  | (?P<newline>\n)
  | (?P<comment>\#[^\n]*)
  | (?P<string>(?P<prefix>[A-Za-z]{0,2})
      (?:\"\"\"(?:[^"\\]|\\.|\"(?!\"\"))*\"\"\" | '''(?:[^'\\]|\\.|'(?!''))*'''
        | "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*'))
  | (?P<number>(?:[0-9]|\.[0-9])(?:[eE][+-]|[A-Za-z0-9_.])*)
  | (?P<name>\w+)
  | (?P<open>[(\[{])
  | (?P<close>[)\]}])
  | (?P<operator>\*\*|//|->|:=|<<|>>|[<>=!]=|[-+*/%@&|^~<>=,.:;\\])
    """,
    re.VERBOSE | re.DOTALL,
)
#: What to write instead of characters that mathematics and other languages use.
_INSTEAD = {
    "?": "write where(condition, a, b)", "!": "write not a, or a != b", "$": "leave it out", "`": "leave it out",
    **{sign: f"write {plain}" for sign, plain in zip("\u00d7\u00b7\u22c5\u00f7\u2212\u2264\u2265\u2260",
                                                    ("*", "*", "*", "/", "-", "<=", ">=", "!="), strict=True)},
    **dict.fromkeys("\u201c\u201d\u201e\u2018\u2019", "write straight quotes"),
}  # fmt: skip
_PLAIN = re.compile(r"[\n\t\f\x20-\x7e]*")
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Mn", "Me")


@dataclass(frozen=True)
class _Position:
    """Turns an offset into a line and a column, both counted from 1."""

    text: str

    def fail(self, offset: int, code: str, message: str, found: str, expected: str, hint: str) -> ProgramError:
        line = self.text.count("\n", 0, offset) + 1
        column = offset - (self.text.rfind("\n", 0, offset) + 1) + 1
        return ProgramError([Diagnostic(code, message, line, column, found, expected, hint)])


def check_text(text: str) -> None:
    """Raises `ProgramError` for text that no program needs: too long, too deep, or not plain."""
    at = _Position(text)
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ProgramError(
            [
                Diagnostic(
                    "text-too-long",
                    "the program is too long",
                    1,
                    1,
                    f"{len(text)} characters",
                    f"at most {MAX_BYTES} bytes",
                    "a program is a few dozen lines",
                )
            ]
        )
    _check_characters(text, at)
    _check_lines(text, at)
    _check_tokens(text, at)


def _check_characters(text: str, at: _Position) -> None:
    if _PLAIN.fullmatch(text):
        return
    for offset, char in enumerate(text):
        if char in "\n\t\f" or (char.isascii() and char.isprintable()):
            continue
        if char == "\r" and text[offset + 1 : offset + 2] == "\n":
            continue
        if unicodedata.normalize("NFC", char) != char or unicodedata.combining(char):
            raise at.fail(
                offset,
                "not-normalised",
                "the text holds a character that is not in its plain form",
                f"U+{ord(char):04X}",
                "text in Unicode normal form C",
                "write the composed letter",
            )
        if unicodedata.category(char) in _HIDDEN:
            raise at.fail(
                offset,
                "hidden-character",
                "the text holds an invisible or undefined character",
                f"U+{ord(char):04X}",
                "visible characters",
                {"\ufeff": "save the file as UTF-8 without a byte order mark", "\r": "end lines with a line feed"}.get(
                    char, "remove it"
                ),
            )


def _check_lines(text: str, at: _Position) -> None:
    offset = 0
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > MAX_LINE:
            raise at.fail(
                offset + MAX_LINE,
                "line-too-long",
                "a line is too long",
                f"{len(line)} characters",
                f"at most {MAX_LINE}",
                "break it inside brackets",
            )
        start = line.lstrip(" \t\f")
        if number <= 2 and start.startswith("#") and ("coding:" in start or "coding=" in start):
            raise at.fail(
                offset,
                "coding-cookie",
                "the program declares an encoding",
                start[:40],
                "text in UTF-8",
                "remove the declaration",
            )
        offset += len(line) + 1


def _check_tokens(text: str, at: _Position) -> None:
    text = text.replace("\r\n", " \n")
    offset = depth = tokens = statement = 0
    while offset < len(text):
        match = _TOKEN.match(text, offset)
        if match is None:
            char = text[offset]
            if char in "\"'":
                raise at.fail(
                    offset,
                    "open-string",
                    "a string is not closed",
                    char,
                    "the closing quote",
                    "close it on its line; a text of several lines stands in triple quotes",
                )
            raise at.fail(
                offset,
                "stray-character",
                "the character has no meaning here",
                repr(char),
                "letters a-z, digits and operators",
                _INSTEAD.get(char) or "other characters stand in docstrings and comments",
            )
        kind, piece = match.lastgroup, match.group()
        if kind == "newline" and depth == 0:
            statement = 0
        elif kind not in ("space", "newline", "comment"):
            tokens += 1
            statement += 1
            if tokens > MAX_TOKENS:
                raise at.fail(
                    offset,
                    "too-many-tokens",
                    "the program is too large",
                    f"more than {MAX_TOKENS} tokens",
                    f"at most {MAX_TOKENS} tokens",
                    "a program is a few dozen lines",
                )
            if statement > MAX_STATEMENT:
                raise at.fail(
                    offset,
                    "statement-too-long",
                    "a statement is too long",
                    f"more than {MAX_STATEMENT} tokens",
                    f"at most {MAX_STATEMENT} tokens",
                    "give parts of it names",
                )
        if kind == "open":
            depth += 1
            if depth > MAX_BRACKETS:
                raise at.fail(
                    offset,
                    "nesting-too-deep",
                    "brackets are nested too deeply",
                    f"more than {MAX_BRACKETS} levels",
                    f"at most {MAX_BRACKETS} levels",
                    "give parts of it names",
                )
        elif kind == "close":
            depth = max(0, depth - 1)
        elif match["prefix"]:
            raise at.fail(
                offset,
                "string-prefix",
                "strings have no prefix",
                piece[:20],
                'text in quotes: "max"',
                "write it in plain quotes, without the prefix; text names a reduction or a precision",
            )
        elif kind == "number" and len(piece) > MAX_NUMBER:
            raise at.fail(
                offset,
                "number-too-long",
                "a number has too many digits",
                f"{len(piece)} characters",
                f"at most {MAX_NUMBER}",
                "a dozen digits are plenty",
            )
        elif kind == "name" and not piece.isascii():
            bad = next(i for i, char in enumerate(piece) if not char.isascii())
            raise at.fail(
                offset + bad,
                "name-not-ascii",
                "a name has letters outside a-z",
                ascii(piece[:40]),
                "a-z, A-Z, 0-9 and _",
                "letters that look alike are different names; use plain ones",
            )
        elif kind == "name" and len(piece) > MAX_NAME:
            raise at.fail(
                offset,
                "name-too-long",
                "a name is too long",
                f"{len(piece)} characters",
                f"at most {MAX_NAME}",
                "shorten it",
            )
        offset = match.end()


def syntax_tree(text: str) -> ast.Module:
    """The checked text as a syntax tree; it is parsed, never run. Raises `ProgramError`."""
    check_text(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a backslash in a docstring is nobody's concern
            tree = ast.parse(text)
    except SyntaxError as error:
        line, column = error.lineno or 1, max(1, error.offset or 1)
        lines = text.split("\n")
        raise ProgramError(
            [
                Diagnostic(
                    "syntax",
                    f"this is not Python syntax: {error.msg}",
                    line,
                    column,
                    lines[line - 1].strip()[:40] if line <= len(lines) else "the end of the text",
                    "Python syntax",
                    _syntax_hint(error, lines[line - 1] if line <= len(lines) else ""),
                )
            ]
        ) from None
    except (ValueError, RecursionError, MemoryError):
        found, expected = "too deep a nesting", "a text that Python can parse"
        raise ProgramError(
            [Diagnostic("syntax", "the text cannot be parsed", 1, 1, found, expected, "simplify it")]
        ) from None
    _check_tree(tree)
    return tree


def _syntax_hint(error: SyntaxError, line: str) -> str:
    """What usually causes the error: the interpreter's own words differ between versions."""
    said = error.msg
    if isinstance(error, IndentationError):
        return "indent what stands in a class by four spaces, and what stands in a method by eight"
    if "&&" in line or "||" in line:
        return "join conditions with the words and, or, not"
    if "never closed" in said or "unmatched" in said or "does not match" in said:
        return "close every bracket that is opened, and none twice"
    if "':'" in said:
        return "end the line with a colon"
    return "a comma, an operator, a bracket or a quote is missing or too much here or at the end of the line above"


def _check_tree(tree: ast.Module) -> None:
    count = 0
    level: list[ast.AST] = [tree]
    depth = 0
    while level:
        count += len(level)
        depth += 1
        first = next((node for node in level if hasattr(node, "lineno")), None)
        line, column = getattr(first, "lineno", 1), getattr(first, "col_offset", 0) + 1
        if depth > MAX_DEPTH:
            raise ProgramError(
                [
                    Diagnostic(
                        "expression-too-deep",
                        "an expression is nested too deeply",
                        line,
                        column,
                        f"more than {MAX_DEPTH} levels",
                        f"at most {MAX_DEPTH} levels",
                        "give parts of it names",
                    )
                ]
            )
        if count > MAX_NODES:
            raise ProgramError(
                [
                    Diagnostic(
                        "too-many-nodes",
                        "the program is too large",
                        line,
                        column,
                        f"more than {MAX_NODES} syntax nodes",
                        f"at most {MAX_NODES} syntax nodes",
                        "a program is a few dozen lines",
                    )
                ]
            )
        level = [child for node in level for child in ast.iter_child_nodes(node)]
