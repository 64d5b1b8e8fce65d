"""What commands print: JSON for programs, tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.verdict import Estimate

if TYPE_CHECKING:
    from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON (docs/schemas).")]


def require_runs(folder: str) -> None:
    """Raises `VortexError` where a folder of runs that somebody named is not there, or is none."""
    if not Path(folder).exists():
        raise VortexError(f"there is no folder {folder}; give the folder of your runs with --runs, or leave --runs out")
    if not Path(folder).is_dir():
        raise VortexError(f"{folder} is a file; give the folder of your runs with --runs, or leave --runs out")


def _read(context: typer.Context, option: typer.CallbackParam, folder: str) -> str:
    """The folder of `--runs` of a command that reads; the default one need not be there yet."""
    source = context.get_parameter_source(str(option.name))
    if source is not None and source.name == "COMMANDLINE":
        require_runs(folder)
    return folder


#: Of a command that reads runs, and of one that makes the folder where it is not there.
Runs = Annotated[str, typer.Option("--runs", help="Folder of the runs.", callback=_read)]
NewRuns = Annotated[str, typer.Option("--runs", help="Folder of the runs.")]


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(data, indent=2, allow_nan=False))


def console(stderr: bool = False) -> Console:
    """A console that wraps nothing when its output is not a terminal, so that lines stay lines."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, highlight=False, markup=False, soft_wrap=not stream.isatty())


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A table on standard output; columns named in `right` are aligned to the right. Cells are plain text."""
    if not sys.stdout.isatty():  # nothing is cut where nobody looks at a screen, and rich would take a while
        aligned = _aligned(columns, [[printable(cell) for cell in row] for row in rows], right)
        print("\n".join([title, *aligned] if title else aligned))
        return
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=Text(title) if title else None, title_justify="left", box=None, pad_edge=False)
    for name in columns:
        drawn.add_column(Text(name), justify="right" if name in right else "left", no_wrap=name != "reason")
    for row in rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    console().print(drawn)


def _aligned(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> list[str]:
    """Lines of a table, each column as wide as its widest cell."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    lines = []
    for row in (columns, *rows):
        blanks = [" " * (width - cell_len(cell)) for width, cell in zip(widths, row, strict=True)]
        cells = [b + c if name in right else c + b for name, c, b in zip(columns, row, blanks, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def printable(text: str) -> str:
    """Text from programs and models without control characters: it cannot steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def lines(mapping: Mapping[str, Any], indent: str = "") -> None:
    """`name  value` lines, aligned."""
    width = max((len(name) for name in mapping), default=0)
    for name, value in mapping.items():
        print(printable(f"{indent}{name:<{width}}  {value}".rstrip()))


def interval(estimate: Estimate | Mapping[str, float] | None, digits: int = 3) -> str:
    """`1.234 [1.200, 1.260]`, or a dash for what was not measured."""
    if estimate is None:
        return "-"
    item = estimate.to_json() if isinstance(estimate, Estimate) else estimate
    return f"{item['value']:.{digits}f} [{item['low']:.{digits}f}, {item['high']:.{digits}f}]"


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def settings(values: Mapping[str, Any]) -> str:
    """Knobs as `name=value` in the order of their names."""
    return " ".join(f"{name}={value}" for name, value in sorted(values.items())) or "-"


def where(speed: str, device: str) -> str:
    """`measured on DEVICE` or `predicted for DEVICE`."""
    return f"{speed} {'for' if speed == 'predicted' else 'on'} {device.removesuffix(' (predicted)')}"


def kv_cache(conditions: Mapping[str, Any]) -> str:
    """The precision of a program's KV cache beside that of dense attention."""
    kept = conditions.get("kv_dtype")
    return f"{kept}; dense attention in {conditions['dtype']}" if kept else "-"


def size(number: float) -> str:
    """Bytes as `512 B`, `1.3 MB`, `20.0 GB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number:.0f} B"


def duration(seconds: float | None) -> str:
    """`1 h 05 min`, `3 min 20 s`, `12 s`, or a dash."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def print_gates(verdict: dict[str, Any]) -> None:
    """Alarms, gates and tasks of a verdict in its JSON form."""
    for alarm in verdict["alarms"]:
        print(printable(f"ALARM          {alarm}"))
    print()
    table(
        "gates",
        ("gate", "passed", "seconds", "reason"),
        [(g["name"], "yes" if g["passed"] else "no", number(g["seconds"], 2), g["reason"]) for g in verdict["gates"]],
        right=("seconds",),
    )
    if verdict["per_task"]:
        print()
        table(
            "score by task",
            ("task", "dense", "sparse", "difference", "answers"),
            [
                (name, number(row.get("dense")), number(row.get("sparse")), interval(row.get("difference")),
                 str(row.get("n", "")))
                for name, row in verdict["per_task"].items()
            ],
            right=("dense", "sparse", "answers"),
        )  # fmt: skip
