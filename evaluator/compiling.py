"""The compile gate: a program's GPU kernels, for targets that need not be present, in a process with limits."""

from __future__ import annotations

from typing import Any

from vortexlab.dsl.ir import Program, Static


def report(program: Program, static: Static, targets: list[str]) -> dict[str, Any]:
    raise NotImplementedError
