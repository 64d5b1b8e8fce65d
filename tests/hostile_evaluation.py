"""The evaluator's worker, except that programs of certain names make it misbehave at certain gates. For tests."""

from __future__ import annotations

import os
import time
from typing import Any

from vortexlab.evaluator import worker


class HostileWorker(worker.Worker):
    def numerics(self, seed: int) -> dict[str, Any]:
        if self._current().name == "Crash":
            os.abort()
        return super().numerics(seed)

    def fidelity(self) -> dict[str, Any]:
        if self._current().name == "Fault":
            raise IndexError("list index\nout of range")
        return super().fidelity()

    def answers(self, forks: list[list[int]], order: str, protocol: str) -> dict[str, Any]:
        if self._current().name == "Loop":
            while True:
                time.sleep(0.01)
        return super().answers(forks, order, protocol)

    def speed(self, **arguments: Any) -> dict[str, Any]:
        if self._current().name == "Bomb":
            held = []
            while True:
                held.append(bytearray(b"x" * (64 << 20)))
        return super().speed(**arguments)


if __name__ == "__main__":
    worker.Worker = HostileWorker  # type: ignore[misc]
    worker.main()
