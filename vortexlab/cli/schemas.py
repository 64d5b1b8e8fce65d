"""The form of every ``--json`` output, and how ``docs/schemas`` is written from it.

    python -m vortexlab.cli.schemas docs/schemas

Fields are never renamed or removed within a major version; new ones may be added.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vortexlab.cli.forms.base import Form
from vortexlab.cli.forms.campaigns import (
    Compare,
    Dashboard,
    Explain,
    Finals,
    Leaderboard,
    Member,
    Report,
    Search,
    Status,
)
from vortexlab.cli.forms.commands import Ask, Attack, Clean, Doctor, Init, Request, Tasks
from vortexlab.cli.forms.deployment import Export, Verify
from vortexlab.cli.forms.programs import Check, Evaluated
from vortexlab.cli.forms.runs import AllRuns, Packed, Unpacked
from vortexlab.cli.forms.timing import Bench, Tune

OUTPUTS: dict[str, type[Form]] = {
    "init": Init,
    "search": Search,
    "status": Status,
    "leaderboard": Leaderboard,
    "show": Member,
    "compare": Compare,
    "report": Report,
    "dashboard": Dashboard,
    "explain": Explain,
    "finals": Finals,
    "check": Check,
    "eval": Evaluated,
    "bench": Bench,
    "export": Export,
    "verify": Verify,
    "ask": Ask,
    "tell": Member,
    "propose": Request,
    "pin": Request,
    "pause": Request,
    "resume": Request,
    "tune": Tune,
    "runs": AllRuns,
    "pack": Packed,
    "unpack": Unpacked,
    "clean": Clean,
    "tasks": Tasks,
    "attack": Attack,
    "doctor": Doctor,
}


def schema(command: str) -> dict[str, Any]:
    """The JSON schema of a command's output."""
    found = OUTPUTS[command].model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": f"vortex {command} --json"}


def spelled(command: str) -> str:
    """The text of the file of a command's schema."""
    return json.dumps(schema(command), indent=2, sort_keys=True) + "\n"


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for command in OUTPUTS:
        (folder / f"{command}.json").write_text(spelled(command), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/schemas"))
