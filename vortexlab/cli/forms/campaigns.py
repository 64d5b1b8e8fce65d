"""Outputs about campaigns: their progress, their programs and what was measured of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from vortexlab.cli.forms.base import Estimate, Form, Hash, Knobs, Number, Share, TrialId


class Comparison(Form):
    """Against the published programs at matched accuracy; `beaten` when the lower bound is above zero."""

    id: TrialId
    name: str
    difference: Estimate
    beaten: bool


class Entry(Form):
    """An accepted program. `device` is where speed was measured or predicted for, `speed` which of the two; `kv_dtype`
    the precision of the program's KV cache (that of dense attention is `dtype` of the conditions). `shrunk` is the
    accuracy kept with the winner's curse taken back, `rank` the non-dominated rank by it; `separated` programs are
    above every other one that may be as fast. `pinned`: people ask to build on it."""

    id: TrialId
    name: str
    pinned: bool
    on_frontier: bool
    frontier_probability: Share
    speedup: Estimate
    accuracy: Estimate
    shrunk: Estimate
    rank: Annotated[int, Field(ge=1)]
    separated: bool
    non_inferior: str
    density: float | None
    state_bytes: float | None
    batch_fits: dict[str, int | None]
    kv_dtype: str
    device: str
    speed: str
    new: bool
    beats_seed: Comparison | None
    answers: int
    contexts: int
    proposer: str
    operator: str
    label: str
    knobs: Knobs
    structure: Hash
    conditions: dict[str, Any]


class Leaderboard(Form):
    """`vortex leaderboard --json`: accepted programs, those on the frontier first."""

    run: str
    entries: list[Entry]


class Standing(Form):
    """A member of the frontier in short."""

    id: TrialId
    name: str
    speedup: float
    accuracy: float


class Limits(Form):
    """What language models may cost; None is without limit. All fields are absent in a campaign without any."""

    calls: int | None = None
    tokens: int | None = None
    money: float | None = None
    model_seconds: float | None = None


class Progress(Form):
    """How a campaign stands. `evaluations` were measured in full, `recorded` are all, `running` under way, the first of
    them `under_way` by name; times in seconds. `growth`: the hypervolume over the programs recorded, sampled; `best`:
    members of the frontier that dominate the largest areas; `limits` of calls, tokens, money and model_seconds."""

    run: str
    phase: str
    current: str
    evaluations: int
    budget: int | None
    hours: float | None
    recorded: int
    running: int
    under_way: list[str]
    stopping: bool
    accepted: int
    rejected: int
    errors: int
    structures: int
    new_structures: int
    per_hour: float
    seconds: float
    seconds_left: float | None
    funnel: dict[str, int]
    frontier: int
    hypervolume: float
    growth: list[float]
    best: list[Standing]
    calls: int
    tokens: int
    money: float
    model_seconds: float
    limits: Limits
    latest: str


class Logged(Progress):
    """A line of `vortex search --log`."""

    time: Annotated[str, Field(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z$")]


class Arm(Form):
    """What one way of proposing was given and what came of it."""

    proposer: str
    operator: str
    slots: int
    accepted: int
    gain: float
    cost: float


class Status(Progress):
    """`vortex status --json`. `waiting`: what people asked for and was not begun."""

    folder: str
    state: Literal["running", "paused", "finished", "interrupted"]
    reason: str
    pending: list[str]
    sessions: int
    arms: list[Arm]
    pinned: list[TrialId]
    waiting: list[str]
    stopped: dict[str, str]
    failures: list[str]
    notes: list[str]


class Search(Form):
    """`vortex search --json`: how the campaign ended."""

    run: str
    folder: str
    reason: str
    progress: Progress
    closing: list[str]
    entries: list[Entry]


class Gate(Form):
    name: str
    passed: bool
    seconds: float
    reason: str
    details: dict[str, Any]


class Verdict(Form):
    """Everything that one evaluation found. `outcomes`: [task, context, length, answers, dense right, sparse right]."""

    version: int
    program: str
    source_hash: Hash
    structure: Hash
    knobs: Knobs
    status: Literal["accepted", "rejected", "error"]
    gate: str | None
    reason: str
    gates: list[Gate]
    speedup: Estimate | None
    accuracy: Estimate | None
    density: float | None
    per_task: dict[str, dict[str, Any]]
    answers: int
    contexts: int
    outcomes: list[tuple[str, str, int, int, Number, Number]]
    non_inferiority: dict[str, Any]
    state: dict[str, Any]
    stages: dict[str, Any]
    predicted_speedup: float | None
    speed_samples: dict[str, list[float]]
    conditions: dict[str, Any]
    seconds: float
    alarms: list[str]


class Ancestor(Form):
    id: TrialId
    name: str
    proposer: str
    operator: str
    parents: list[TrialId]


class Nearest(Form):
    """The nearest published program. `same`: the structure is that program's, so that only `numbers` differ."""

    program: str
    citation: str
    distance: Share
    same: bool
    differences: list[str]
    numbers: list[str]
    text: str


class Oracle(Form):
    """What the best choice of as many pages would keep, reading `density` of the context; `reason`: why there is none.
    """

    accuracy: Estimate | None
    density: float | None
    reason: str


class Member(Form):
    """`vortex show --json` and `vortex tell --json`: one trial of a run. Times in seconds since the epoch."""

    run: str
    id: TrialId
    name: str
    source: str
    knobs: Knobs
    hash: Hash
    structure: Hash
    new: bool
    label: str
    arm: tuple[str, str]
    proposer: str
    operator: str
    parents: list[TrialId]
    hypothesis: str
    predicted_effect: dict[str, Any]
    lineage: list[Ancestor]
    children: list[TrialId]
    limits: dict[str, Any]
    pinned: bool
    on_frontier: bool
    frontier_probability: Share
    beats_seed: Comparison | None
    oracle: Oracle | None
    nearest: Nearest
    started: float
    finished: float
    verdict: Verdict


class Compared(Form):
    """One of the compared programs; the differences are to the first one, which has none."""

    id: TrialId
    name: str
    status: Literal["accepted", "rejected", "error"]
    gate: str | None
    reason: str
    speedup: Estimate | None
    accuracy: Estimate | None
    density: float | None
    speedup_difference: Estimate | None
    accuracy_difference: Estimate | None
    shared_contexts: int
    distance: Share
    per_task: dict[str, dict[str, Any]]
    device: str
    speed: str
    knobs: Knobs
    parents: list[TrialId]
    source: str


class Compare(Form):
    """`vortex compare --json`."""

    run: str
    members: Annotated[list[Compared], Field(min_length=2)]


class Part(Form):
    """A part of a program: `change`, `source`, `knobs` and `hash` are of the program without it, which was a trial of
    the run where `trial` is not empty. Bought is what the part adds; null where one of the two was not measured in
    full. An empty `status`: not measured yet."""

    change: str
    source: str
    knobs: Knobs
    hash: Hash
    trial: str
    status: Literal["accepted", "rejected", "error", ""]
    gate: str | None
    reason: str
    speedup: Estimate | None
    accuracy: Estimate | None
    speedup_bought: Estimate | None
    accuracy_bought: Estimate | None
    effect: str


class Explained(Form):
    id: TrialId
    name: str
    speedup: Estimate
    accuracy: Estimate
    nearest: Nearest
    parts: list[Part]


class Explain(Form):
    """`vortex explain --json`. `left`: parts that are not measured yet."""

    run: str
    members: list[Explained]
    left: int


class Report(Form):
    """`vortex report --json`: where the page was written, and the frontier as far as it was explained."""

    run: str
    file: str
    bytes: int
    explained: list[Explained]


class Dashboard(Form):
    """`vortex dashboard --json`, printed once it answers: where it listens and the `file` that it shows; `live` where
    that follows a campaign that runs."""

    run: str
    address: str
    file: str
    live: bool


class Final(Form):
    """A finalist: accuracy kept in the search, and the verdict on sealed contexts (null: not yet measured). From the
    second `opening` on these had been seen."""

    id: TrialId
    name: str
    opening: Annotated[int, Field(ge=1)]
    searched: Estimate | None
    verdict: Verdict | None


class Finals(Form):
    """`vortex finals --json`."""

    run: str
    rows: list[Final]
    split: str
    lengths: list[int]
    contexts: int
    margin: float
