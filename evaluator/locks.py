"""Folders that somebody holds by a lock: whether one is held, and how it goes once nobody does.

The lock is the operating system's (`flock`), on the folder itself or on a file in it, and dies with its holder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path


def is_held(lock: Path) -> bool:
    """Whether somebody has the lock of a file or folder, or it cannot be told."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return not _taken(descriptor)
    except OSError:
        return True
    finally:
        os.close(descriptor)


def remove_unless_held(folder: Path, lock: Path | None = None) -> bool:
    """Removes a folder unless somebody has its lock, by default on the folder itself, or it is another user's; whether
    it did. A lock that is not there is nobody's. Raises `OSError` for one that cannot be opened."""
    try:
        descriptor = os.open(lock or folder, os.O_RDONLY | os.O_NOFOLLOW | (0 if lock else os.O_DIRECTORY))
    except FileNotFoundError:
        shutil.rmtree(folder, ignore_errors=True)
        return True
    try:
        if free := _taken(descriptor):
            shutil.rmtree(folder, ignore_errors=True)
        return free
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    """Takes the lock of what is open and ours, if nobody has it; whether that went."""
    if os.fstat(descriptor).st_uid != os.getuid():
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
