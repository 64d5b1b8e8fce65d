"""All runs in a table, and runs that move between machines: `vortex runs`, `vortex pack`, `vortex unpack`."""

from __future__ import annotations

import time
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from vortexlab.cli.output import AsJson, NewRuns, Runs, print_json, printable, size, table
from vortexlab.cli.results import RunName


def runs(root: Runs = "runs", as_json: AsJson = False) -> None:
    """Every run, the newest first: state, start, evaluations, frontier, best program, size; damaged ones with why."""
    from vortexlab.agent.overview import KEEPS, overview

    rows = overview(root)
    if as_json:
        print_json({"folder": root, "runs": rows})
        return
    if not rows:
        there = "" if root == "runs" else f" --runs {quote(root)}"
        print(printable(f"there are no runs in {Path(root)}/ yet; start one with `vortex search{there}`"))
        return
    table(
        f"runs in {root}; best: the fastest that keeps {KEEPS:g} of dense accuracy, else the most accurate",
        ("run", "state", "started", "evaluated", "frontier", "best", "speed-up", "accuracy", "size", "reason"),
        [
            (
                row["name"], row["state"], _date(row["started"]), _budget(row), str(row["frontier"]),
                *_best(row["best"]), size(row["bytes"]), row["reason"],
            )
            for row in rows
        ],
        right=("evaluated", "frontier", "speed-up", "accuracy", "size"),
    )  # fmt: skip


def pack(
    run: RunName = "latest",
    runs: Runs = "runs",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="By default RUN.tar in the current folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run into one file with checksums, to move it to another machine; also while it is running."""
    from vortexlab.agent.packing import pack as packed

    _print(packed(run, runs, out), "file", as_json)


def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of `vortex pack`.")],
    runs: NewRuns = "runs",
    name: Annotated[str, typer.Option(help="Name of the run here; by default its own.")] = "",
    as_json: AsJson = False,
) -> None:
    """Check a packed run, and put it into the runs."""
    from vortexlab.agent.packing import unpack as unpacked

    _print(unpacked(file, runs, name), "folder", as_json)


def _print(found: dict[str, Any], place: str, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    for item in found["files"]:
        print(printable(f"{item['sha256']}  {item['bytes']:>12}  {item['name']}"))
    print(printable(f"run {found['run']}: {found[place]}"))


def _date(seconds: float | None) -> str:
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _budget(row: dict[str, Any]) -> str:
    return f"{row['evaluations']}" if row["budget"] is None else f"{row['evaluations']} of {row['budget']}"


def _best(found: dict[str, Any] | None) -> tuple[str, str, str]:
    if found is None:
        return "-", "-", "-"
    accuracy = "-" if found["accuracy"] is None else f"{found['accuracy']:.3f}"
    return f"{found['id']} {found['name']}", f"{found['speedup']:.3f}", accuracy
