"""Whether processes have ended, for tests of what they leave behind."""

from __future__ import annotations

import time
from collections.abc import Iterable

from vortexlab.evaluator import procfs


def gone(pids: Iterable[int], seconds: float = 20.0) -> bool:
    """Whether all these processes end within seconds: who was killed ends when the kernel comes to it; a zombie has."""
    left, ends = list(pids), time.monotonic() + seconds
    while left := [pid for pid in left if procfs.runs(pid)]:
        if time.monotonic() >= ends:
            return False
        time.sleep(0.02)
    return True
