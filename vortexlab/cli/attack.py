"""Attacks on the evaluator that is installed here: `vortex attack`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from vortexlab.cli.output import AsJson, lines, number, print_json, table
from vortexlab.dsl.errors import VortexError


def attack(
    only: Annotated[list[str] | None, typer.Option(help="A line of the checklist (A12, S3); repeatable.")] = None,
    as_json: AsJson = False,
) -> int:
    """Hostile programs, code, clocks and choices against this machine's evaluator; status 1 when one is accepted."""
    from vortexlab.agent import attacks as campaign
    from vortexlab.evaluator.attacks import corpus, processes
    from vortexlab.evaluator.sandbox import has_bubblewrap

    attacks = corpus.in_order((*corpus.ATTACKS, *campaign.ATTACKS))
    known = list(dict.fromkeys(item.id for item in attacks))
    wanted = [word.upper() for word in only or known]
    if unknown := [word for word in wanted if word not in known]:
        raise VortexError(f"attack {unknown[0]!r} is none of {', '.join(known)}")
    with processes.Range() as place:
        stand = str(place.ask("well")["walls"]).split()
    rows: list[dict[str, Any]] = []
    for result in corpus.run([item for item in attacks if item.id in wanted]):
        item = result.attack
        if not as_json:
            print(f"{item.id}: {'stopped' if result.stopped else 'ACCEPTED'}", file=sys.stderr, flush=True)
        rows.append({
            "id": item.id, "kind": item.kind, "tries": item.tries, "expected": item.expected, "found": result.found,
            "ways": result.ways, "stopped": result.stopped, "wall": item.wall, "seconds": result.seconds,
        })  # fmt: skip
    accepted = sum(not row["stopped"] for row in rows)
    found = {"walls": stand, "bubblewrap": has_bubblewrap(), "rows": rows, "accepted": accepted}
    if as_json:
        print_json(found)
        return 1 if accepted else 0
    table(
        "attacks",
        ("line", "tries", "expected", "found", "ways", "seconds"),
        [(r["id"], r["tries"], r["expected"], r["found"], str(r["ways"]), number(r["seconds"], 1)) for r in rows],
        right=("ways", "seconds"),
    )
    print()
    lines({
        "walls of the kernel": ", ".join(stand) or "none: files, signals and sockets are not kept from hostile code",
        "bubblewrap": "used" if found["bubblewrap"] else "not installed, or not allowed here; nothing needs it",
        "attacks": f"{len(rows)}, {accepted} accepted",
    })  # fmt: skip
    return 1 if accepted else 0
