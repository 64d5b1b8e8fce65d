"""Program text in colours, as classes that the style sheet knows."""

from __future__ import annotations

import functools
import html
import keyword
import re
from typing import ClassVar

from pygments.formatters import HtmlFormatter
from pygments.lexer import RegexLexer, words
from pygments.token import Comment, Keyword, Name, Number, Punctuation, String, Text

from vortexlab.cli.output import printable
from vortexlab.dsl.surface import WORDS

_LONGEST = 20_000  # characters; no program of the language is longer


class ProgramLexer(RegexLexer):
    """The language, in a fifth of the time that the lexer of Python takes, and with its own words told apart."""

    name = "Vortex"
    tokens: ClassVar = {
        "root": [
            (r"\s+", Text),
            (r"(?<=class )\w+|(?<=def )\w+", Name.Function),
            (words(WORDS, prefix=r"\b", suffix=r"\b"), Name.Builtin),
            (words(keyword.kwlist, prefix=r"\b", suffix=r"\b"), Keyword),
            (r"[^\W\d]\w*", Text),
            (r"@\w+", Name.Decorator),
            (r"[0-9][\w.]*", Number),
            (r"#.*", Comment),
            (r'"""[\s\S]*?"""', String.Doc),
            (r'"[^"\n]*"|\'[^\'\n]*\'', String),
            (r".", Punctuation),
        ]
    }


@functools.lru_cache(maxsize=1024)  # programs that differ in their knobs have the same text
def highlighted(source: str) -> str:
    """The text as markup that says the same: spans of the highlighter and, in them, escaped text.

    What comes back is only used when it holds nothing but such spans and, without them, the very text that went in.
    """
    from pygments import highlight

    shown = printable(source)
    if len(shown) > _LONGEST:
        return html.escape(shown)
    found = str(highlight(shown, ProgramLexer(stripnl=False, ensurenl=False), HtmlFormatter(nowrap=True)))
    if not shown.endswith("\n"):
        found = found.removesuffix("\n")  # the highlighter ends every line
    found = re.sub(r'<span class="(?:p|w)">([^<]*)</span>', r"\1", found)  # marks have no colour
    plain = re.sub(r'<span class="[a-z0-9]+">|</span>', "", found)
    return found if "<" not in plain and html.unescape(plain) == shown else html.escape(shown)
