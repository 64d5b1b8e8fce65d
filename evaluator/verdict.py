"""What the evaluator says about a program: plain data, JSON in and out, no other imports.

A `Verdict` carries every number with the conditions it was measured under; its `Head` is the small part of it that a
search decides by. Measured and predicted speeds, and
different devices, are never mixed: `conditions["speed"]` names which one `speedup` is.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

VERDICT_VERSION = 1
ACCEPTED, REJECTED, ERROR = "accepted", "rejected", "error"
STATUSES = (ACCEPTED, REJECTED, ERROR)
GATES = ("parse", "numerics", "compile", "fidelity", "screen", "speed", "accuracy")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A point estimate and its 95 % interval, all finite."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"an estimate must be finite, found {self.value}, {self.low}, {self.high}")

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, float]) -> Estimate:
        return Estimate(float(data["value"]), float(data["low"]), float(data["high"]))

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class GateResult:
    """One gate's answer. `reason` is one line, empty when the gate passed without remark."""

    name: str
    passed: bool
    seconds: float
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> GateResult:
        return GateResult(
            data["name"], bool(data["passed"]), float(data["seconds"]), data["reason"], dict(data["details"])
        )


@dataclass(frozen=True)
class Outcome:
    """What one context contributed: how many of its `answers` dense and sparse attention got right, or the sums of
    their scores, 0 to 1 each.

    These are the resampling units of every interval on accuracy. `context` is the sample's own name, equal in all
    verdicts of one environment, so programs can be compared on the same contexts.
    """

    task: str
    context: str
    length: int
    answers: int
    dense: float
    sparse: float

    def to_json(self) -> list[Any]:
        return [self.task, self.context, self.length, self.answers, self.dense, self.sparse]

    @staticmethod
    def from_json(data: list[Any]) -> Outcome:
        return Outcome(*data)


@dataclass(frozen=True)
class Verdict:
    """Everything that one evaluation of one bound program found out.

    * `status`: ``accepted`` (every gate passed), ``rejected`` (gate `gate` said no, `reason` says why) or
      ``error`` (the worker was lost in gate `gate`: crash, time, memory, garbage).
    * `source_hash` is the canonical hash of the bound program, `structure` that with knobs and numbers blanked.
    * `speedup`: dense time / sparse time of the attention step. `accuracy`: accuracy kept, the mean over tasks of
      the sparse scores over that of the dense scores on the same samples; the interval is a paired bootstrap over
      contexts. `density`: effective density of the accuracy run (of the fidelity gate before that).
    * `per_task`: task -> dense, sparse (mean score, 0..1), n (answers), contexts, difference (Estimate as JSON),
      sign_p (exact two-sided sign test over flipped answers).
    * `non_inferiority`: the decision on the margin that was declared (`sequential.Decision` as JSON); empty without
      answers.
    * `state`: bytes that a request keeps per token of context, and the batch that fits (`costs.state`).
    * `stages`: cost by stage (bytes read and written, predicted and, where measured, measured microseconds).
    * `speed_samples`: the paired ratios that `speedup` was computed from, one list per length.
    * `conditions`: device, geometry, lengths, batch, dtype (of the model and of dense attention), kv_dtype (of the
      program's KV cache), versions, seeds, protocol, baseline, speed.
    """

    program: str
    source_hash: str
    structure: str
    knobs: Mapping[str, Any]
    status: str
    gate: str | None = None
    reason: str = ""
    gates: tuple[GateResult, ...] = ()
    speedup: Estimate | None = None
    accuracy: Estimate | None = None
    density: float | None = None
    per_task: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    answers: int = 0
    contexts: int = 0
    outcomes: tuple[Outcome, ...] = ()
    non_inferiority: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, Any] = field(default_factory=dict)
    predicted_speedup: float | None = None
    speed_samples: Mapping[str, list[float]] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    alarms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r} is not one of {', '.join(STATUSES)}")

    @property
    def accepted(self) -> bool:
        return self.status == ACCEPTED

    def gate_result(self, name: str) -> GateResult | None:
        return next((gate for gate in self.gates if gate.name == name), None)

    @property
    def screened(self) -> tuple[float, float] | None:
        """(predicted speed-up, accuracy kept) on the screen, None where the program was not screened."""
        screen = self.gate_result("screen")
        if screen is None or "point" not in screen.details:
            return None
        speed, kept = screen.details["point"]
        return float(speed), float(kept)

    def to_json(self) -> dict[str, Any]:
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        data.update(
            version=VERDICT_VERSION,
            knobs=dict(self.knobs),
            gates=[gate.to_json() for gate in self.gates],
            speedup=self.speedup.to_json() if self.speedup else None,
            accuracy=self.accuracy.to_json() if self.accuracy else None,
            outcomes=[outcome.to_json() for outcome in self.outcomes],
            alarms=list(self.alarms),
        )
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Verdict:
        """The inverse of `to_json`. Raises `ValueError` for a form of another version."""
        _require_version(data)
        plain = {name: data[name] for name in Verdict.__dataclass_fields__ if name in data}
        plain.update(
            gates=tuple(GateResult.from_json(gate) for gate in data["gates"]),
            speedup=Estimate.from_json(data["speedup"]) if data["speedup"] else None,
            accuracy=Estimate.from_json(data["accuracy"]) if data["accuracy"] else None,
            outcomes=tuple(Outcome.from_json(item) for item in data["outcomes"]),
            alarms=tuple(data["alarms"]),
        )
        return Verdict(**plain)


@dataclass(frozen=True, slots=True)
class Head:
    """What decisions need of a verdict, a tenth of it: records keep it apart from the rest (see `split`).

    Fields are those of `Verdict`, and `reached`: gate -> whether it was passed, in the order in which they were asked;
    `speed`: ``measured`` or ``predicted``; `screened`: (predicted speed-up, accuracy kept) on the screen, None where
    the program was not screened.
    """

    program: str
    source_hash: str
    structure: str
    status: str
    gate: str | None = None
    reason: str = ""
    speedup: Estimate | None = None
    accuracy: Estimate | None = None
    density: float | None = None
    answers: int = 0
    contexts: int = 0
    predicted_speedup: float | None = None
    seconds: float = 0.0
    alarms: tuple[str, ...] = ()
    reached: Mapping[str, bool] = field(default_factory=dict)
    speed: str = ""
    screened: tuple[float, float] | None = None

    @property
    def passed(self) -> list[str]:
        return [name for name, passed in self.reached.items() if passed]

    @staticmethod
    def of(verdict: Verdict) -> Head:
        return Head.from_json(split(verdict.to_json())[0])

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "version": VERDICT_VERSION,
            "speedup": self.speedup.to_json() if self.speedup else None,
            "accuracy": self.accuracy.to_json() if self.accuracy else None,
            "alarms": list(self.alarms),
            "reached": dict(self.reached),
            "screened": list(self.screened) if self.screened else None,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Head:
        """The inverse of `to_json`. Raises `ValueError` for a form of another version."""
        _require_version(data)
        plain = {name: data[name] for name in _HEAD if name in data}
        for name in _TEXTS:
            if name in plain:
                plain[name] = interned(plain[name])
        plain.update(
            speedup=Estimate.from_json(data["speedup"]) if data["speedup"] else None,
            accuracy=Estimate.from_json(data["accuracy"]) if data["accuracy"] else None,
            alarms=tuple(data["alarms"]),
            reached=_reached(tuple(data.get("reached", {}).items())),
            screened=tuple(data["screened"]) if data["screened"] else None,
        )
        return Head(**plain)


_HEAD = tuple(Head.__dataclass_fields__)
_TEXTS = ("program", "source_hash", "structure", "status", "gate", "reason", "speed")


def interned(value: Any) -> Any:
    """The same text as one object, wherever records repeat it: thousands of them are held at once."""
    return sys.intern(value) if type(value) is str else value


@lru_cache(maxsize=1024)
def _reached(gates: tuple[tuple[str, bool], ...]) -> Mapping[str, bool]:
    """Few ways lead through the gates: one object for each, not to be changed."""
    return {interned(name): passed for name, passed in gates}


_DERIVED = ("reached", "speed", "screened")  # of a head: said in the rest of the verdict too
_SHARED = ("version", *(name for name in Head.__dataclass_fields__ if name not in _DERIVED))


def split(verdict: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A verdict's JSON as that of its head and the rest, the detail; `joined` is the inverse."""
    gates = {gate["name"]: gate for gate in verdict["gates"]}
    head = {name: verdict[name] for name in _SHARED if name in verdict}
    head.update(
        reached={name: bool(gate["passed"]) for name, gate in gates.items()},
        speed=str(verdict["conditions"].get("speed", "")),
        screened=gates["screen"]["details"].get("point") if "screen" in gates else None,
    )
    return head, {name: value for name, value in verdict.items() if name not in _SHARED}


def joined(head: Mapping[str, Any], detail: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict's JSON from the two parts that `split` makes."""
    return {**{name: value for name, value in head.items() if name not in _DERIVED}, **detail}


def _require_version(data: Mapping[str, Any]) -> None:
    if data.get("version") != VERDICT_VERSION:
        raise ValueError(f"verdict form of version {data.get('version')!r}; this release reads {VERDICT_VERSION}")
