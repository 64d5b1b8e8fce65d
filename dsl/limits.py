"""What a program's text may look like, checked before any parser sees it.

Every check is linear in the text and stops at the first offence, so hostile input costs milliseconds.
"""

from __future__ import annotations

import ast
import re
import unicodedata

from vortexlab.dsl.errors import Diagnostic, ProgramError

MAX_BYTES = 20_000
MAX_LINE = 1_000
MAX_DEPTH = 40
MAX_NODES = 4_000
MAX_DIGITS = 20
MAX_NAME = 64

_NUMBER = re.compile(r"[0-9][0-9_]*")
_NAME = re.compile(r"\w+")
_OPEN, _CLOSE = "([{", ")]}"


def fail(
    code: str, message: str, line: int = 1, column: int = 1, *, found: str = "", expected: str = "", hint: str = ""
) -> ProgramError:
    return ProgramError([Diagnostic(code, message, line, column, found, expected, hint)])


def check_text(text: str) -> None:
    """Raises `ProgramError` for text that no program needs: too long, too deep, or not plain."""
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise fail(
            "text-too-long", "the program is too long", found=f"{len(text)} characters",
            expected=f"at most {MAX_BYTES} bytes", hint="a program is a few dozen lines",
        )  # fmt: skip
    depth = 0
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > MAX_LINE:
            raise fail("line-too-long", "a line is too long", number, MAX_LINE, found=f"{len(line)} characters",
                       expected=f"at most {MAX_LINE}")  # fmt: skip
        if number <= 2 and re.match(r"[ \t\f]*#.*coding[:=]", line):
            raise fail("coding-cookie", "the program declares an encoding", number, 1, hint="remove it; text is UTF-8")
        for column, char in enumerate(line, 1):
            if char in _OPEN:
                depth += 1
                if depth > MAX_DEPTH:
                    raise fail("nesting-too-deep", "brackets are nested too deeply", number, column,
                               expected=f"at most {MAX_DEPTH} levels")  # fmt: skip
            elif char in _CLOSE:
                depth = max(0, depth - 1)
            elif ord(char) < 32 and char not in "\t\f\r" or ord(char) == 127:
                raise fail("control-character", "the text holds a control character", number, column,
                           found=f"U+{ord(char):04X}", hint="remove it")  # fmt: skip
            elif unicodedata.category(char) in ("Cf", "Cs", "Co", "Cn"):
                raise fail("hidden-character", "the text holds an invisible or undefined character", number, column,
                           found=f"U+{ord(char):04X}", hint="remove it")  # fmt: skip
        code = line.split("#")[0] if '"' not in line and "'" not in line else line
        for match in _NUMBER.finditer(code):
            if len(match.group()) > MAX_DIGITS:
                raise fail("number-too-long", "a number has too many digits", number, match.start() + 1,
                           found=f"{len(match.group())} digits", expected=f"at most {MAX_DIGITS}")  # fmt: skip
        for match in _NAME.finditer(code):
            if len(match.group()) > MAX_NAME and not match.group().isdigit():
                raise fail("name-too-long", "a name is too long", number, match.start() + 1,
                           expected=f"at most {MAX_NAME} characters")  # fmt: skip


def syntax_tree(text: str) -> ast.Module:
    """The checked text as a syntax tree; it is parsed, never run. Raises `ProgramError`."""
    check_text(text)
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise fail(
            "syntax", f"this is not Python syntax: {error.msg}", error.lineno or 1, max(1, error.offset or 1),
            hint="a program is one class with the methods summarize, score and select",
        ) from None  # fmt: skip
    except (ValueError, RecursionError, MemoryError) as error:
        raise fail("syntax", f"the text cannot be parsed: {type(error).__name__}") from None
    count = 0
    for node in ast.walk(tree):
        count += 1
        if count > MAX_NODES:
            raise fail("too-many-nodes", "the program is too large", getattr(node, "lineno", 1),
                       found=f"more than {MAX_NODES} syntax nodes")  # fmt: skip
        for name in (getattr(node, "id", None), getattr(node, "attr", None), getattr(node, "name", None)):
            if isinstance(name, str) and not name.isascii():
                raise fail("name-not-ascii", "a name has letters outside a-z", getattr(node, "lineno", 1),
                           getattr(node, "col_offset", 0) + 1, found=ascii(name),
                           hint="letters that look alike are different names; use plain ones")  # fmt: skip
    return tree
