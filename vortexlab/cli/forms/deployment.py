"""Outputs of `vortex export` and `vortex verify`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vortexlab.cli.forms.base import Estimate, Form, Hash, TrialId
from vortexlab.cli.forms.timing import DenseGate


class Export(Form):
    """`vortex export --json`. `gate` is null without --gate."""

    run: str
    id: TrialId
    engine: Literal["transformers", "vllm", "sglang"]
    folder: str
    module: str
    program_hash: Hash
    cases: int
    gate: DenseGate | None


class Judgement(Form):
    """Two sides of the self-test compared; differences of logits relative to their spread."""

    cases: int
    steps: int
    worst_logit_difference: float
    tolerance: float
    answers_that_differ: int
    density_difference: float
    ok: bool


class Comparisons(Form):
    """The package against the evaluator now; the package, and the evaluator now, against what was recorded."""

    engine: Judgement
    recorded: Judgement | None
    evaluator: Judgement | None


class Selections(Form):
    """Page lists read in the engine; `wrong`: those that the reference does not allow."""

    steps: int
    lists: int
    wrong: int
    overlap: float | None
    ok: bool


class Kept(Form):
    """Accuracy of one side on the same sealed answers."""

    kept: Estimate | None
    dense: float
    sparse: float


class ServedAccuracy(Form):
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


class Latency(Form):
    """Seconds to the first token and between later ones; `sparse_share` of decode steps, none for the engine's own."""

    first_p50: float
    first_p95: float
    between_p50: float
    between_p95: float
    sparse_share: float | None = None


class ServedTimes(Form):
    """One length and batch; `ratio`: the engine's own time between tokens over that of the pattern as deployed."""

    length: int
    batch: int
    dense: Latency
    gate_off: Latency = Field(alias="gate off")
    gate_on: Latency | None = Field(default=None, alias="gate on")
    ratio: float


class ServedSpeed(Form):
    """Timed in one run; `break_even` is the ratio at the longest length and largest batch."""

    rows: list[ServedTimes]
    generated: int
    seed: int
    threads: int
    break_even: float
    ok: bool


class Verify(Form):
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
