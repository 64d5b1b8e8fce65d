"""How values become text of the page: escaped, always, and here alone."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from typing import Any

from vortexlab.cli.output import printable, settings


def text(value: Any) -> str:
    """A value as one line of text of the page, or of an attribute; nothing in it is markup or steers the reader."""
    return html.escape(printable(" ".join(str(value).split())))


def hover(rows: Iterable[str]) -> str:
    """Lines that Plotly shows at a point. It reads a little HTML in them, so they are escaped too."""
    return "<br>".join(text(row) for row in rows if row)


def knobs(values: Mapping[str, Any]) -> str:
    """Knobs as plain text, numbers to four digits: enough to tell programs apart; their texts have them whole."""
    return settings({name: f"{value:.4g}" if isinstance(value, float) else value for name, value in values.items()})


def link(identifier: str, shown: Iterable[str]) -> str:
    """The id of a trial, as a link where the page has its text (`shown`)."""
    name = text(identifier)
    return f'<a href="#{name}">{name}</a>' if identifier in shown else name


def data(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    plain = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def table(headings: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table of plain values, in a box of its own that scrolls."""
    return raw_table(headings, ("".join(f"<td>{text(cell)}</td>" for cell in row) for row in rows))


def raw_table(headings: Iterable[str], rows: Iterable[str]) -> str:
    """A table whose rows are markup already: their cells, or a whole ``<tr>``."""
    heading = "".join(f"<th>{text(name)}</th>" for name in headings)
    body = "\n".join(row if row.startswith("<tr") else f"<tr>{row}</tr>" for row in rows)
    return (
        '<div class="scroll" tabindex="0">'
        f"<table><thead><tr>{heading}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )
