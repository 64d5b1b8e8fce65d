"""Outputs of `vortex runs`, `vortex pack` and `vortex unpack`."""

from __future__ import annotations

from typing import Literal

from vortexlab.cli.forms.base import Bytes, Form, Hash, TrialId


class Best(Form):
    """The fastest program that keeps enough of dense accuracy, else the most accurate one; point estimates."""

    id: TrialId
    name: str
    speedup: float
    accuracy: float | None


class RunRow(Form):
    """A run. `reason`: why it ended, what is damaged, or which newer release wrote it; `started` in seconds since the
    epoch, null where the record cannot be read."""

    name: str
    folder: str
    state: Literal["running", "paused", "finished", "interrupted", "damaged", "newer"]
    reason: str
    started: float | None
    evaluations: int
    budget: int | None
    frontier: int
    best: Best | None
    bytes: Bytes


class AllRuns(Form):
    """`vortex runs --json`: the newest first, those that cannot be read last."""

    folder: str
    runs: list[RunRow]


class PackedFile(Form):
    name: str
    bytes: Bytes
    sha256: Hash


class Packed(Form):
    """`vortex pack --json`: the file that was written, and what is in it."""

    run: str
    file: str
    bytes: Bytes
    files: list[PackedFile]


class Unpacked(Form):
    """`vortex unpack --json`: the run's name and folder here, and what was checked."""

    run: str
    folder: str
    bytes: Bytes
    files: list[PackedFile]
