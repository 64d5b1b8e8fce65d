"""What people ask of a campaign, while it runs or before it goes on: files in `RUN/inbox`.

Each holds one request as JSON, whole or not at all. Names sort by time, and a file's name is the id of its request. The
controller reads them between slots; it records a request before it deletes the file, and what was recorded under an id
is not done again, so a kill loses nothing and repeats nothing. `agent.requests` writes them, `agent.admission` judges
them.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vortexlab.dsl.errors import VortexError

INBOX = "inbox"
_LIMIT = 1 << 20  # bytes of a request


def send(folder: Path, request: Mapping[str, Any]) -> str:
    """Leaves a request for the campaign in `folder` and returns its id.

    Raises `VortexError` when the inbox cannot be written.
    """
    inbox = folder / INBOX
    name = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
    draft = inbox / f".{name}"
    try:
        inbox.mkdir(exist_ok=True)
        with draft.open("x", encoding="utf-8") as file:
            json.dump(request, file)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(inbox / f"{name}.json")
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise VortexError(
            f"cannot leave a request in {inbox} ({reason}); make the folder writable for you, or free some space"
        ) from error
    return name


def waiting(folder: Path) -> list[Path]:
    """Files of the requests that nobody has taken yet, in order."""
    try:
        found = [path for path in (folder / INBOX).iterdir() if path.suffix == ".json" and path.name[0] != "."]
    except OSError:
        return []
    return sorted(found, key=lambda path: path.name)


def described(path: Path) -> str:
    """A waiting request in a few words."""
    try:
        request, _ = read(path)
    except (VortexError, OSError):
        return f"{path.name}, which cannot be read"
    return " ".join(str(request[key]) for key in ("kind", "name", "trial") if request.get(key))


def discard(path: Path) -> None:
    """Deletes a recorded request. Where that fails it stays, and its id keeps it from being done again."""
    with suppress(OSError):
        path.unlink()


def read(path: Path) -> tuple[Mapping[str, Any], float]:
    """The JSON object of a file and when it was written. Raises `VortexError` or `OSError`."""
    info = path.lstat()
    if not stat.S_ISREG(info.st_mode):
        raise VortexError("it is no plain file")
    if info.st_size > _LIMIT:
        raise VortexError(f"it is larger than {_LIMIT} bytes")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise VortexError(f"it is no JSON ({error})") from None
    if not isinstance(found, dict):
        raise VortexError("it is no JSON object")
    return found, info.st_mtime
