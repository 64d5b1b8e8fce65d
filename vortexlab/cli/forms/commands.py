"""Outputs of the commands for agents and requests, tasks, attacks, `vortex clean` and `vortex doctor`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vortexlab.cli.forms.base import Bytes, Form, Hash, TrialId


class Init(Form):
    """`vortex init --json`: the configuration that was written, and what it was made from: a preset, or a run."""

    file: str
    preset: str
    run: str


class Message(Form):
    role: str
    content: str


class Ask(Form):
    """`vortex ask --json`: a chat to complete, and how to hand in the answer."""

    run: str
    slot: int
    task: str
    budget_left: int | None
    prompt_version: str
    messages: list[Message]
    answer_with: str


class Request(Form):
    """`vortex propose --json`, and those of `pin`, `pause` and `resume`: what was asked of a run.

    `request` is the id of what waits in the inbox, empty where nothing had to be asked; `running`: a campaign is at
    work, which takes it before its next slot; `trial` is the one meant, or the one that measured the program already.
    """

    run: str
    kind: Literal["propose", "pin", "unpin", "pause", "resume"]
    request: str
    running: bool
    trial: TrialId | None
    message: str


class Task(Form):
    """A task: how answers are scored, tokens generated, the source it takes, and whether nothing is made without it."""

    name: str
    metric: str
    tokens: int
    source: str
    needs_source: bool


class Asked(Form):
    """A question of a sample: what follows the context, the texts that a right answer holds, tokens generated."""

    question: str
    references: list[str]
    metric: str
    tokens: int


class Shown(Form):
    """A sample as the model reads it; `tokens` are those of the context, `total` those of all that is read."""

    task: str
    length: int
    index: int
    tokens: int
    total: int
    context: str
    questions: list[Asked]


class Tasks(Form):
    """`vortex tasks --json`: the catalogue, or with names, samples; `digests` are the versions of what is asked."""

    tasks: list[Task]
    samples: list[Shown]
    digests: dict[str, Hash]


class AttackRow(Form):
    """One attack: what it `tries`, in how many `ways`, the verdict `expected` and the one `found`; `wall` stops it."""

    id: Annotated[str, Field(pattern="^[AS][0-9]+$")]
    kind: str
    tries: str
    expected: str
    found: str
    ways: int
    stopped: bool
    wall: str
    seconds: float


class Attack(Form):
    """`vortex attack --json`. `walls` of the kernel that stand on this machine; `accepted`: attacks not stopped."""

    walls: list[str]
    bubblewrap: bool
    rows: list[AttackRow]
    accepted: int


class Item(Form):
    area: str
    name: str
    ok: bool
    detail: str


class Rescued(Form):
    """The run that holds what was read of a damaged one: its events up to the first that is lost, the trials evaluated
    by then, and verdicts after it, which are not measured again when the search comes by their programs."""

    run: str
    folder: str
    events: int
    trials: int
    measured: int


class Doctor(Form):
    """`vortex doctor --json`. Of keys only whether they are set. With a run, `items` are about its record; `rescued` is
    what was saved of a damaged one."""

    items: list[Item]
    missing: list[str]
    rescued: Rescued | None


class CacheRow(Form):
    """A cache: entries held, how many are in use, what was removed (`dry_run`: would be). `cap` null: it has none."""

    name: Literal["contexts", "samples", "kernels", "scratch", "locks"]
    what: str
    folder: str
    cap: Bytes | None
    entries: int
    bytes: Bytes
    in_use: int
    removed: int
    removed_bytes: Bytes
    left_bytes: Bytes


class Clean(Form):
    """`vortex clean --json`."""

    dry_run: bool
    freed_bytes: Bytes
    caches: list[CacheRow]
