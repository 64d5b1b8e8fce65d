"""Outputs of `vortex bench` and `vortex tune`."""

from __future__ import annotations

from typing import Any, Literal

from vortexlab.cli.forms.base import Estimate, Form, Hash, Knobs
from vortexlab.cli.forms.programs import Geometry


class BenchRow(Form):
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


class TunedTable(Form):
    """A table of tuned tiles that a measurement ran with: `entries` that held, `stale` ones that were ignored."""

    origin: Literal["user", "shipped"]
    sha256: Hash
    entries: int
    stale: int


class BenchConditions(Form):
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


class GateOpening(Form):
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


class DenseGate(Form):
    """Where a step runs the program and where it is dense; `opens` follows from `ratios`."""

    opens: list[GateOpening]
    ratios: list[GateRatio]
    conditions: GateConditions


class Bench(Form):
    """`vortex bench --json`. `gate` is null without --gate, and where a timed output was wrong."""

    file: str
    program: str
    knobs: Knobs
    conditions: BenchConditions
    rows: list[BenchRow]
    gate: DenseGate | None


class TuneCase(Form):
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


class TuneRow(Form):
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


class Tune(Form):
    """`vortex tune --json`. `kept` entries are new in the table, which has `entries` now."""

    file: str
    device: str
    seconds: int
    cases: int
    rows: list[TuneRow]
    kept: int
    entries: int
