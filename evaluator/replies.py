"""The form of the worker's answers, checked before anything in them is believed."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vortexlab.evaluator.sandbox import WorkerLost

Text = Annotated[str, Field(max_length=4096)]
Share = Annotated[float, Field(ge=0, le=1)]
Token = Annotated[int, Field(ge=0, lt=1 << 31)]
Answers = Annotated[list[Annotated[list[Token], Field(max_length=4096)]], Field(max_length=1 << 16)]


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Hello(_Reply):
    gpu: Text
    network: Text
    walls: list[Text]
    threads: Annotated[int, Field(ge=1)]


class ModelGeometry(_Reply):
    layers: Annotated[int, Field(ge=1)]
    kv_heads: Annotated[int, Field(ge=1)]
    group: Annotated[int, Field(ge=1)]
    head_dim: Annotated[int, Field(ge=1)]
    scale: float
    vocabulary: Annotated[int, Field(ge=1)]
    max_length: Annotated[int, Field(ge=1)]
    architecture: Text


class Opened(_Reply):
    model: ModelGeometry
    prefilled: Annotated[int, Field(ge=0)] = 0
    note: Text = ""


class Dense(_Reply):
    answers: Answers


class Empty(_Reply):
    pass


class Numerics(_Reply):
    failure: Text
    cases: int
    steps: int
    pages: int
    open: int


class Compiled(_Reply):
    failure: Text
    kernels: list[dict[str, Any]]
    cached: bool
    not_covered: list[str] = []


class HeadError(_Reply):
    layer: int
    head: int
    error: float


class Fidelity(_Reply):
    finite: bool
    error_mean: float
    error_p95: float
    error_worst_head: float
    worst_heads: Annotated[list[HeadError], Field(max_length=3)]
    layer_density: Annotated[list[Annotated[float, Field(ge=0)]], Field(max_length=1 << 10)]
    cache_error: float
    selection_error: float
    mass: float
    mass_of_best: float
    density: float
    ties: Share
    picked: Annotated[list[Annotated[list[Share], Field(max_length=1 << 20)]], Field(max_length=1 << 12)]
    divergence: Annotated[float, Field(ge=0)]
    steps: int
    dense_limit: float


class Answered(_Reply):
    answers: Answers
    density: Annotated[float, Field(ge=0)]
    reads: Annotated[int, Field(ge=1)]
    counts: dict[str, Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=1 << 20)]]


class Timing(_Reply):
    ratios: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1, max_length=1000)]
    dense_ms: Annotated[float, Field(gt=0)]
    sparse_ms: Annotated[float, Field(gt=0)]
    summary_ms: Annotated[float, Field(ge=0)]
    select_ms: Annotated[float, Field(ge=0)]
    attend_ms: Annotated[float, Field(ge=0)]
    baseline: Text
    baselines_ms: dict[str, float]
    density: Annotated[float, Field(gt=0, le=1.0001)]
    batch: Annotated[int, Field(ge=1)]
    worst_error: Annotated[float, Field(ge=0)]
    drift: Annotated[float, Field(ge=0)]
    inputs: Literal["synthetic", "recorded"]
    by_inputs: dict[str, Annotated[float, Field(gt=0)]]


class Speed(_Reply):
    timing: Timing | None = None
    failure: Text = ""


class Failed(Exception):
    """The worker lives, but the operation did not end as it should; one line."""


def plain(text: str) -> str:
    """A worker's text as one line that a terminal can be given."""
    return "".join(c if c.isprintable() else "?" for c in text)


R = TypeVar("R", bound=_Reply)


def parse(kind: type[R], reply: dict[str, Any]) -> R:
    """The checked answer. Raises `Failed` when the worker says it failed, `WorkerLost` when the answer is garbage."""
    for key in ("refused", "failed"):
        if key in reply:
            if not isinstance(reply[key], str):
                break
            raise Failed(plain(reply[key])[:400])
    try:
        return kind.model_validate(reply.get("ok"))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the answer"
        raise WorkerLost("garbage", f"the worker's answer has not the agreed form: {where}: {first['msg']}") from error
