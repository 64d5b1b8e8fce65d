"""Several evaluators on one machine: while one of them times programs, no other works on the same device."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.tasks.cache import cache_folder


@contextmanager
def turn(device: str, alone: bool) -> Iterator[None]:
    """Work on a device among the evaluators of this user: beside others, or alone, for which it waits.

    Whoever wants to be alone is not passed by those who come later. Raises `VortexError` when neither the cache nor the
    folder for temporary files can be written.
    """
    how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    with _locked(_path(device, "door"), fcntl.LOCK_EX) as door, _locked(_path(device, "room"), how):
        fcntl.flock(door, fcntl.LOCK_UN)
        yield


def _path(device: str, part: str) -> Path:
    visible = "".join(c if c.isalnum() else "-" for c in os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    name = f"{device}-{visible}" if device == "cuda" and visible else device
    folder = cache_folder() / "turns"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir())
    return folder / f"vortex-{os.getuid()}-{name}-{part}.lock"


@contextmanager
def _locked(path: Path, how: int) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        why = f"{path} cannot be opened ({error.strerror}); set VORTEX_CACHE to a folder of yours"
        raise VortexError(why) from error
    try:
        fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        os.close(descriptor)
