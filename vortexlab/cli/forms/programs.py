"""Outputs about one program: `vortex check` and `vortex eval`."""

from __future__ import annotations

from typing import Any, Literal

from vortexlab.cli.forms.base import Form, Hash, Number, Share
from vortexlab.cli.forms.campaigns import Verdict


class Finding(Form):
    """One diagnostic; lines and columns count from 1."""

    code: str
    message: str
    line: int
    column: int
    found: str
    expected: str
    hint: str
    severity: Literal["error", "warning"]


class Knob(Form):
    name: str
    kind: Literal["int", "float", "choice", "bool"]
    default: Number | bool | str | None
    low: Number | None
    high: Number | None
    log: bool
    step: Number | None
    choices: list[Number | bool | str | None]
    value: Number | bool | str | None


class Kernel(Form):
    """Resources of one kernel, compiled ahead of time."""

    kernel: str
    target: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    uses: list[str]


class Geometry(Form):
    """`latent`: of MLA, else 0; `logit_dim`: the channels that the softmax scale is of, 0 for `head_dim`."""

    name: str
    layers: int
    kv_heads: int
    group: int
    head_dim: int
    latent: int = 0
    logit_dim: int = 0


class Parameter(Form):
    """A learned constant: `tensor` is its name in the file, `shape` the lengths of its axes there, in order."""

    name: str
    tensor: str
    kind: Literal["int", "float"]
    shape: dict[str, int]


class Memory(Form):
    """What is carried to the next step or layer; `every` is the period in steps; `init` is null for a set of pages."""

    name: str
    scope: Literal["step", "layer"]
    kind: Literal["float", "set"]
    axes: list[str]
    init: float | None
    every: int


class Reuse(Form):
    over: Literal["steps", "layers"]
    every: int | None
    line: int


class SaturationRow(Form):
    """Shares of `numbers` numbers: finite and beyond the range of `dtype`, not 0 and becoming 0, not finite at all."""

    input: str
    what: str
    dtype: str
    line: int | None
    numbers: int
    over: Share
    under: Share
    not_finite: Share


class Saturation(Form):
    """What was counted on numbers: `inputs` says what each input's numbers are, `left_out` what was not counted."""

    inputs: dict[str, str]
    rows: list[SaturationRow]
    left_out: list[str]


class Check(Form):
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


class Evaluated(Form):
    """`vortex eval --json`."""

    file: str
    verdict: Verdict
