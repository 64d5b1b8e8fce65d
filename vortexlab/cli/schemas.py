"""The form of every ``--json`` output, and how ``docs/schemas`` is written from it.

    python -m vortexlab.cli.schemas docs/schemas

Fields are never renamed or removed within a major version; new ones may be added.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
TrialId = Annotated[str, Field(pattern="^t[0-9]{4,}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Knobs = dict[str, int | float | bool | str | None]
Number = int | float


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Estimate(_Form):
    """A point estimate and its 95 % interval."""

    value: float
    low: float
    high: float


class Comparison(_Form):
    """Against the published programs at matched accuracy; `beaten` when the lower bound is above zero."""

    id: TrialId
    name: str
    difference: Estimate
    beaten: bool


class Entry(_Form):
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


class Leaderboard(_Form):
    """`vortex leaderboard --json`: accepted programs, those on the frontier first."""

    run: str
    entries: list[Entry]


class Progress(_Form):
    """How a campaign stands. `evaluations` were measured in full, `recorded` are all; times in seconds."""

    run: str
    phase: str
    current: str
    evaluations: int
    budget: int | None
    recorded: int
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
    calls: int
    tokens: int
    money: float
    model_seconds: float


class Arm(_Form):
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
    pending: str
    sessions: int
    arms: list[Arm]
    pinned: list[TrialId]
    waiting: list[str]
    stopped: dict[str, str]
    failures: list[str]
    notes: list[str]


class Search(_Form):
    """`vortex search --json`: how the campaign ended."""

    run: str
    folder: str
    reason: str
    progress: Progress
    closing: list[str]
    entries: list[Entry]


class Gate(_Form):
    name: str
    passed: bool
    seconds: float
    reason: str
    details: dict[str, Any]


class Verdict(_Form):
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


class Ancestor(_Form):
    id: TrialId
    name: str
    proposer: str
    operator: str
    parents: list[TrialId]


class Nearest(_Form):
    """The nearest published program. `same`: the structure is that program's, so that only `numbers` differ."""

    program: str
    citation: str
    distance: Share
    same: bool
    differences: list[str]
    numbers: list[str]
    text: str


class Member(_Form):
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
    nearest: Nearest
    started: float
    finished: float
    verdict: Verdict


class Compared(_Form):
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


class Compare(_Form):
    """`vortex compare --json`."""

    run: str
    members: Annotated[list[Compared], Field(min_length=2)]


class Part(_Form):
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


class Explained(_Form):
    id: TrialId
    name: str
    speedup: Estimate
    accuracy: Estimate
    nearest: Nearest
    parts: list[Part]


class Explain(_Form):
    """`vortex explain --json`. `left`: parts that are not measured yet."""

    run: str
    members: list[Explained]
    left: int


class Report(_Form):
    """`vortex report --json`: where the page was written, and the frontier as far as it was explained."""

    run: str
    file: str
    bytes: int
    explained: list[Explained]


class Final(_Form):
    """A finalist: accuracy kept in the search, and the verdict on sealed contexts (null: not yet measured). From the
    second `opening` on these had been seen."""

    id: TrialId
    name: str
    opening: Annotated[int, Field(ge=1)]
    searched: Estimate | None
    verdict: Verdict | None


class Finals(_Form):
    """`vortex finals --json`."""

    run: str
    rows: list[Final]
    split: str
    lengths: list[int]
    contexts: int
    margin: float


class Finding(_Form):
    """One diagnostic; lines and columns count from 1."""

    code: str
    message: str
    line: int
    column: int
    found: str
    expected: str
    hint: str
    severity: Literal["error", "warning"]


class Knob(_Form):
    name: str
    kind: Literal["int", "float", "choice", "bool"]
    default: Number | bool | str | None
    low: Number | None
    high: Number | None
    log: bool
    step: Number | None
    choices: list[Number | bool | str | None]
    value: Number | bool | str | None


class Kernel(_Form):
    """Resources of one kernel, compiled ahead of time."""

    kernel: str
    target: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    uses: list[str]


class Geometry(_Form):
    """`latent`: of MLA, else 0; `logit_dim`: the channels that the softmax scale is of, 0 for `head_dim`."""

    name: str
    layers: int
    kv_heads: int
    group: int
    head_dim: int
    latent: int = 0
    logit_dim: int = 0


class Parameter(_Form):
    """A learned constant: `tensor` is its name in the file, `shape` the lengths of its axes there, in order."""

    name: str
    tensor: str
    kind: Literal["int", "float"]
    shape: dict[str, int]


class Memory(_Form):
    """What is carried to the next step or layer; `every` is the period in steps; `init` is null for a set of pages."""

    name: str
    scope: Literal["step", "layer"]
    kind: Literal["float", "set"]
    axes: list[str]
    init: float | None
    every: int


class Reuse(_Form):
    over: Literal["steps", "layers"]
    every: int | None
    line: int


class SaturationRow(_Form):
    """Shares of `numbers` numbers: finite and beyond the range of `dtype`, not 0 and becoming 0, not finite at all."""

    input: str
    what: str
    dtype: str
    line: int | None
    numbers: int
    over: Share
    under: Share
    not_finite: Share


class Saturation(_Form):
    """What was counted on numbers: `inputs` says what each input's numbers are, `left_out` what was not counted."""

    inputs: dict[str, str]
    rows: list[SaturationRow]
    left_out: list[str]


class Check(_Form):
    """`vortex check --json` for a program. For a text that is none, only `file`, `ok` and `diagnostics` are printed.

    `dtype` is the precision of the dense KV cache, `kv_dtype` that of the program's; `kv` and `summaries` are what the
    program asks for, `auto` and `kv` where the program leaves them open; `block` the queries of a
    block of sparse prefill; `attention` the parts of each attention of the program's own output; `saturation` is null
    where nothing is stored in or cast to fp8 or fp16; `not_covered` names what has no Triton kernels.
    """

    file: str
    ok: bool
    diagnostics: list[Finding]
    name: str | None = None
    hash: Hash | None = None
    structure: Hash | None = None
    published_as: str | None = None
    page: int | None = None
    knobs: list[Knob] = []
    geometry: Geometry | None = None
    dtype: str | None = None
    kv_dtype: str | None = None
    page_bounds: dict[str, int] = {}
    kernels: list[Kernel] = []
    compile_failure: str = ""
    not_covered: list[str] = []
    kv: str | None = None
    summaries: str | None = None
    parameters: list[Parameter] = []
    parameters_digest: Hash | None = None
    memories: list[Memory] = []
    reuse: list[Reuse] = []
    block: int | None = None
    attention: list[list[str]] = []
    reads_latent: bool = False
    saturation: Saturation | None = None
    costs: list[dict[str, Any]] = []


class Evaluated(_Form):
    """`vortex eval --json`."""

    file: str
    verdict: Verdict


class BenchRow(_Form):
    """One context length; times are medians in milliseconds, `predicted` is the cost model's answer. `drift`: how far
    dense attention moved within the run, as a share; `by_inputs` has a ratio where more than one `inputs` was timed."""

    context: int
    batch: int
    failure: str
    speedup: Estimate | None
    ratios: list[float]
    dense_ms: float
    sparse_ms: float
    summary_ms: float
    select_ms: float
    attend_ms: float
    baseline: str
    baselines_ms: dict[str, float]
    density: float
    worst_error: float
    drift: float
    inputs: Literal["synthetic", "recorded"]
    by_inputs: dict[str, float]
    recorded_counts: int
    predicted: dict[str, Any]


class TunedTable(_Form):
    """A table of tuned tiles that a measurement ran with: `entries` that held, `stale` ones that were ignored."""

    origin: Literal["user", "shipped"]
    sha256: Hash
    entries: int
    stale: int


class BenchConditions(_Form):
    """`dtype` is that of queries and of dense attention, `kv_dtype` that of the program's KV cache; `tables` hold the
    tuned tiles of both, on a GPU."""

    speed: Literal["measured"]
    device: str
    dtype: str
    kv_dtype: str
    geometry: Geometry
    threads: int
    seed: int
    versions: dict[str, str]
    tables: list[TunedTable] = []


class GateOpening(_Form):
    """`context`: from where on steps of this batch are sparse, null for never."""

    batch: int
    context: int | None


class GateRatio(Estimate):
    """Speed-up over the fastest dense step, with its interval, at one batch and context."""

    batch: int
    context: int


class GateConditions(BenchConditions):
    """Those of the measurement, and the program that was measured."""

    program_hash: Hash


class DenseGate(_Form):
    """Where a step runs the program and where it is dense; `opens` follows from `ratios`."""

    opens: list[GateOpening]
    ratios: list[GateRatio]
    conditions: GateConditions


class Bench(_Form):
    """`vortex bench --json`. `gate` is null without --gate, and where a timed output was wrong."""

    file: str
    program: str
    knobs: Knobs
    conditions: BenchConditions
    rows: list[BenchRow]
    gate: DenseGate | None


class Export(_Form):
    """`vortex export --json`. `gate` is null without --gate."""

    run: str
    id: TrialId
    engine: Literal["transformers", "vllm", "sglang"]
    folder: str
    module: str
    program_hash: Hash
    cases: int
    gate: DenseGate | None


class Judgement(_Form):
    """Two sides of the self-test compared; differences of logits relative to their spread."""

    cases: int
    steps: int
    worst_logit_difference: float
    tolerance: float
    answers_that_differ: int
    density_difference: float
    ok: bool


class Comparisons(_Form):
    """The package against the evaluator now; the package, and the evaluator now, against what was recorded."""

    engine: Judgement
    recorded: Judgement | None
    evaluator: Judgement | None


class Selections(_Form):
    """Page lists read in the engine; `wrong`: those that the reference does not allow."""

    steps: int
    lists: int
    wrong: int
    overlap: float | None
    ok: bool


class Kept(_Form):
    """Accuracy of one side on the same sealed answers."""

    kept: Estimate | None
    dense: float
    sparse: float


class ServedAccuracy(_Form):
    """Through the engine and through the evaluator; `ok`: the engine's value lies in the evaluator's interval."""

    engine: Kept
    evaluator: Kept
    split: str
    tasks: list[str]
    answers: int
    contexts: int
    lengths: list[int]
    same_answers: int
    ok: bool


class Latency(_Form):
    """Seconds to the first token and between later ones; `sparse_share` of decode steps, none for the engine's own."""

    first_p50: float
    first_p95: float
    between_p50: float
    between_p95: float
    sparse_share: float | None = None


class ServedTimes(_Form):
    """One length and batch; `ratio`: the engine's own time between tokens over that of the pattern as deployed."""

    length: int
    batch: int
    dense: Latency
    gate_off: Latency = Field(alias="gate off")
    gate_on: Latency | None = Field(default=None, alias="gate on")
    ratio: float


class ServedSpeed(_Form):
    """Timed in one run; `break_even` is the ratio at the longest length and largest batch."""

    rows: list[ServedTimes]
    generated: int
    seed: int
    threads: int
    break_even: float
    ok: bool


class Verify(_Form):
    """`vortex verify --json`; `served`: the self-test with the whole prompt dense, in transformers."""

    package: str
    program_hash: Hash
    engine: Literal["transformers", "vllm", "sglang"]
    imported_from: str
    model: str
    device: str
    dtype: str
    protocol: str
    versions: dict[str, str]
    density: float
    comparisons: Comparisons
    engine_version: str
    selections: Selections
    served: Judgement | None = None
    accuracy: ServedAccuracy | None = None
    speed: ServedSpeed | None = None
    ok: bool


class Message(_Form):
    role: str
    content: str


class Ask(_Form):
    """`vortex ask --json`: a chat to complete, and how to hand in the answer."""

    run: str
    slot: int
    task: str
    budget_left: int | None
    prompt_version: str
    messages: list[Message]
    answer_with: str


class Request(_Form):
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


class TuneCase(_Form):
    """A launch as far as its tiles depend on it; `lists` of each KV head, 0 for all pages; `atom` is the page's or
    block's tokens, `block` the queries of a block of sparse prefill, `length` tokens of the longest list or prompt."""

    kernel: Literal["attend", "attend_latent", "attend_prefill"]
    heads: int
    lists: int
    kv_heads: int
    head_dim: int
    value_dim: int
    query: str
    cache: str
    atom: int
    block: int
    batch: int
    length: int


class TuneRow(_Form):
    """One case: medians in microseconds, null where it was not compared to the end. `reason`: why the rule's choice,
    `usual`, stays; empty where `choice` is kept. `failed`: candidates that could not run or were wrong."""

    case: TuneCase
    context: int
    usual: dict[str, int]
    choice: dict[str, int]
    us: float | None
    usual_us: float | None
    gain: float
    noise: float
    candidates: int
    tried: int
    failed: dict[str, str]
    reason: str


class Tune(_Form):
    """`vortex tune --json`. `kept` entries are new in the table, which has `entries` now."""

    file: str
    device: str
    seconds: int
    cases: int
    rows: list[TuneRow]
    kept: int
    entries: int


class Task(_Form):
    """A task: how answers are scored, tokens generated, the source it takes, and whether nothing is made without it."""

    name: str
    metric: str
    tokens: int
    source: str
    needs_source: bool


class Asked(_Form):
    """A question of a sample: what follows the context, the texts that a right answer holds, tokens generated."""

    question: str
    references: list[str]
    metric: str
    tokens: int


class Shown(_Form):
    """A sample as the model reads it; `tokens` are those of the context, `total` those of all that is read."""

    task: str
    length: int
    index: int
    tokens: int
    total: int
    context: str
    questions: list[Asked]


class Tasks(_Form):
    """`vortex tasks --json`: the catalogue, or with names, samples; `digests` are the versions of what is asked."""

    tasks: list[Task]
    samples: list[Shown]
    digests: dict[str, Hash]


class AttackRow(_Form):
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


class Attack(_Form):
    """`vortex attack --json`. `walls` of the kernel that stand on this machine; `accepted`: attacks not stopped."""

    walls: list[str]
    bubblewrap: bool
    rows: list[AttackRow]
    accepted: int


class Item(_Form):
    area: str
    name: str
    ok: bool
    detail: str


class Doctor(_Form):
    """`vortex doctor --json`. Of keys only whether they are set."""

    items: list[Item]
    missing: list[str]


#: Command -> the form of what it prints with --json.
OUTPUTS: dict[str, type[_Form]] = {
    "search": Search,
    "status": Status,
    "leaderboard": Leaderboard,
    "show": Member,
    "compare": Compare,
    "report": Report,
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
