"""Program text in colours, as classes that the style sheet knows."""

from __future__ import annotations

import html
import re

from vortexlab.cli.output import printable

_LONGEST = 20_000  # characters; no program of the language is longer


def highlighted(source: str) -> str:
    """The text as markup that says the same: spans of the highlighter and, in them, escaped text.

    What comes back is only used when it holds nothing but such spans and, without them, the very text that went in.
    """
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    shown = printable(source)
    if len(shown) > _LONGEST:
        return html.escape(shown)
    lexer = PythonLexer(stripnl=False, ensurenl=False)
    found = str(highlight(shown, lexer, HtmlFormatter(nowrap=True)))
    if not shown.endswith("\n"):
        found = found.removesuffix("\n")  # the highlighter ends every line
    found = re.sub(r'<span class="(?:n|p|o|w)">([^<]*)</span>', r"\1", found)  # names and marks have no colour
    plain = re.sub(r'<span class="[a-z0-9]+">|</span>', "", found)
    return found if "<" not in plain and html.unescape(plain) == shown else html.escape(shown)
