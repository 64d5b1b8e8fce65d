"""`vortex clean`: what caches hold, and making room."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from vortexlab.cli.output import AsJson, print_json, printable, size, table
from vortexlab.dsl.errors import VortexError


def clean(
    contexts: Annotated[bool, typer.Option("--contexts", help="Contexts that were read.")] = False,
    samples: Annotated[bool, typer.Option("--samples", help="Samples of tasks.")] = False,
    kernels: Annotated[bool, typer.Option("--kernels", help="Generated kernels, reports of the compiler.")] = False,
    scratch: Annotated[bool, typer.Option("--scratch", help="Folders that killed processes left behind.")] = False,
    cap: Annotated[float | None, typer.Option(metavar="GB", help="Leave so much, what was used last.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and remove nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what can be made again and is not in use: all of it, or the kinds that are named. Never a run."""
    from vortexlab.evaluator import caches

    if cap is not None and not 0 <= cap < math.inf:
        raise VortexError(f"--cap needs GB of at least 0, found {cap}")
    asked = {"contexts": contexts, "samples": samples, "kernels": kernels, "scratch": scratch}
    names = tuple(name for name in caches.NAMES if asked[name])
    rows = caches.clean(names, (cap or 0.0) * 1e9, dry_run)
    freed = sum(row["removed_bytes"] for row in rows)
    if as_json:
        print_json({"dry_run": dry_run, "freed_bytes": freed, "caches": rows})
        return
    table(
        "",
        ("cache", "what", "entries", "size", "cap", "in use", "would go" if dry_run else "removed", "left", "folder"),
        [
            (
                row["name"], row["what"], str(row["entries"]), size(row["bytes"]),
                "-" if row["cap"] is None else size(row["cap"]), str(row["in_use"]), size(row["removed_bytes"]),
                size(row["left_bytes"]), row["folder"],
            )
            for row in rows
        ],
        right=("entries", "size", "cap", "in use", "would go", "removed", "left"),
    )  # fmt: skip
    print()
    print(printable(f"{size(freed)} {'would be freed' if dry_run else 'freed'}"))
