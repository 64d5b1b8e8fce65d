"""The evaluator: a program in, a verdict out, whatever the program does.

This is the controller's side. Everything that runs a model or a timer happens in a confined worker; here its plain
answers are checked, scored and turned into statements with intervals.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vortexlab import dsl
from vortexlab.dsl.errors import ProgramError, VortexError
from vortexlab.dsl.ir import Attr, Program, digest
from vortexlab.dsl.parameters import Parameters
from vortexlab.evaluator import costs, replies, sequential, statistics
from vortexlab.evaluator.config import (
    DTYPE_NAMES,
    EvaluationConfig,
    data_digests,
    device_name,
    is_worded,
    model_digest,
    tuned_tables,
    versions,
)
from vortexlab.evaluator.executors import EVERYTHING
from vortexlab.evaluator.geometries import find_geometry
from vortexlab.evaluator.ladder import Ladder, Point
from vortexlab.evaluator.phases import PREFILL
from vortexlab.evaluator.replies import Failed
from vortexlab.evaluator.samples import Suite, make_suite
from vortexlab.evaluator.sandbox import Limits, Sandbox, WorkerLost
from vortexlab.evaluator.speed import DRIFT
from vortexlab.evaluator.traits import depends_on_data, without_oracle
from vortexlab.evaluator.verdict import ACCEPTED, ERROR, REJECTED, Estimate, GateResult, Outcome, Verdict
from vortexlab.evaluator.workplace import Workplace
from vortexlab.kernels.devices import get_device
from vortexlab.kernels.precision import cache_name

SCREEN, FULL = "screen", "full"
#: The screen rejects only what certainly keeps less than this share of dense accuracy.
SCREEN_FLOOR = 0.2
#: Above this share of pages decided by ties, the other order is answered too and the worse result counts.
TIE_SHARE = 0.01
#: Parts in which accuracy is asked, with a look at the answers after each.
LOOKS = 3
_MEASURED = ("dense_ms", "sparse_ms", "summary_ms", "select_ms", "attend_ms")


class _Stop(Exception):
    """A gate said no."""


@dataclass
class _Trial:
    """One evaluation in progress."""

    program: Program
    gates: list[GateResult] = field(default_factory=list)
    status: str = ACCEPTED
    gate: str | None = None
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)
    sparse: dict[int, float] = field(default_factory=dict)
    density: float = 0.0
    reads: int = 0
    counts: dict[str, list[int]] = field(default_factory=dict)
    order: str = "forward"
    conditions: dict[str, Any] = field(default_factory=dict)


class Evaluator:
    """Evaluates programs under one configuration; a context manager.

    The worker is started by the first evaluation and again after every loss; what it computed of the contexts is kept
    in a scratch folder meanwhile. `evaluate` never raises for anything that a program does.
    """

    def __init__(self, config: EvaluationConfig, *, suite: Suite | None = None, sandbox: Sandbox | None = None):
        """Raises `VortexError` for a model folder without a model, unknown tasks or an unknown geometry."""
        self.config = config
        self.environment = config.environment_key()
        self._data = data_digests(config.data)
        self.geometry = find_geometry(config.geometry)
        get_device(config.predicted_device)
        limits = Limits(config.memory_mb, config.seconds, cuda=config.device == "cuda")
        box = sandbox or Sandbox(limits, threads=config.threads)
        self._place = Workplace(config, suite or make_suite(config), box)
        self._ladder = Ladder(config.promoted)

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker and removes its scratch folder."""
        self._place.close()

    def rank_among(self, points: Iterable[Point]) -> None:
        """Programs that reach the screen from now on are ranked among these and each other (`evaluator.ladder`)."""
        self._ladder.stand(points)

    def open(self) -> None:
        """Starts the worker, reads the contexts and answers them densely, unless that is done already.

        Raises `VortexError` when that fails, since then no program can be evaluated.
        """
        self._place.open()

    @property
    def suite(self) -> Suite:
        return self._place.suite

    @property
    def prefilled(self) -> int | None:
        """Contexts that workers read densely so far; those that were found on disk do not count. None before `open`."""
        return self._place.prefilled

    @property
    def tasks(self) -> list[str]:
        """The tasks that are judged: those on which dense attention scores the configured floor at least.

        What it seldom solves says nothing about a selection."""
        self.open()
        return self._place.tasks()

    def dense_scores(self) -> dict[str, float]:
        """Score of dense attention by task, over all lengths."""
        self.open()
        return self._place.scores()

    # --- evaluation --------------------------------------------------------------------------------------------

    def evaluate(
        self,
        source: str,
        knobs: Mapping[str, Attr] | None = None,
        *,
        fidelity: str = FULL,
        parameters: Parameters | None = None,
    ) -> Verdict:
        """One program through the gates. `fidelity` ``screen`` stops before speed and the full accuracy run.

        `parameters` are those of a program with learned constants; the worker reads the file itself. Raises
        `VortexError` only when the evaluator itself cannot work (no model, no room, no worker).
        """
        if fidelity not in (SCREEN, FULL):
            raise VortexError(f"fidelity {fidelity!r} is not one of {SCREEN}, {FULL}")
        began = time.monotonic()
        try:
            bound, unbound = self._parse(source, knobs, parameters)
        except VortexError as error:
            return self._unparsed(source, knobs, error, time.monotonic() - began)
        trial = _Trial(bound)
        self.open()
        with self._stopping(trial):
            self._gate(trial, "parse", lambda: (self._too_much_state(bound), {}))
            self._run(trial, fidelity)
        return self._verdict(trial, _knob_values(unbound, knobs), time.monotonic() - began)

    def dense_row(self) -> Verdict:
        """Dense attention itself as a row of the table: speed-up and accuracy kept are 1 by definition."""
        self.open()
        trial = _Trial(EVERYTHING, sparse=dict(self._place.dense), density=1.0, reads=1)
        verdict = self._verdict(trial, {}, 0.0)
        return Verdict.from_json({**verdict.to_json(), "program": "dense", "speedup": Estimate(1, 1, 1).to_json()})

    def oracle(self, source: str, knobs: Mapping[str, Attr] | None = None) -> Verdict:
        """What would be kept by reading as many pages as a program that passes the gates, always those that hold the
        most attention (`evaluator.oracle`): an upper bound, without a speed of its own.

        Rejected, with the reason, for a program that has none. Raises as `evaluate` does, and for no program.
        """
        began = time.monotonic()
        bound, unbound = self._parse(source, knobs, None)
        trial = _Trial(bound)
        self.open()

        def asked() -> tuple[str, dict[str, Any]]:
            if why := without_oracle(bound) or ("it reads contexts by itself" if self.config.phase == PREFILL else ""):
                return f"no oracle reads as {bound.name} does: {why}", {}
            self._ask_checked(replies.Empty, "program", program=bound.to_json())
            self._answers(trial, range(len(self.suite.forks)), ("oracle",))
            return "", {}

        with self._stopping(trial):
            self._gate(trial, "accuracy", asked)
        return self._verdict(trial, _knob_values(unbound, knobs), time.monotonic() - began)

    def _state(self, program: Program) -> dict[str, Any]:
        """For the device that speed is about; a GPU that it is measured on counts as the one predicted for."""
        return costs.state(program, self.geometry, self.config.lengths, self._speed_device)

    @property
    def _speed_device(self) -> str:
        cpu = self.config.speed == "measured" and self.config.device == "cpu"
        return "cpu" if cpu else self.config.predicted_device

    def _too_much_state(self, program: Program) -> str:
        kept, most = self._state(program)["state"], self.config.max_state
        if not most or kept <= most:
            return ""
        return f"keeps {kept:,.0f} bytes of state per token of context; at most {most:,.0f} are allowed (max_state)"

    def _parse(
        self, source: str, knobs: Mapping[str, Attr] | None, parameters: Parameters | None
    ) -> tuple[Program, Program]:
        program = dsl.parse(source)
        return program.bind(knobs, parameters), program

    def _unparsed(self, source: str, knobs: Mapping[str, Attr] | None, error: VortexError, seconds: float) -> Verdict:
        details = {}
        if isinstance(error, ProgramError):
            details["diagnostics"] = [item.to_json() for item in error.diagnostics]
        return Verdict(
            program="",
            source_hash=digest(["unparsed", source, dict(knobs or {})]),
            structure=digest(["unparsed", source]),
            knobs=dict(knobs or {}),
            status=REJECTED,
            gate="parse",
            reason=str(error),
            gates=(GateResult("parse", False, seconds, str(error), details),),
            conditions=self._conditions(),
            seconds=seconds,
        )

    @contextmanager
    def _stopping(self, trial: _Trial) -> Iterator[None]:
        try:
            yield
        except _Stop:
            pass
        except WorkerLost as error:
            # Outside a gate: the worker was lost between two of them.
            trial.status, trial.reason = ERROR, str(error)

    def _gate(self, trial: _Trial, name: str, check: Callable[[], tuple[str, dict[str, Any]]]) -> None:
        """Runs one gate. `check` returns why the program fails (empty: it passes) and details."""
        began = time.monotonic()
        try:
            reason, details = check()
            status = REJECTED
        except Failed as error:
            reason, details, status = str(error), {}, REJECTED
        except WorkerLost as error:
            self._place.opened = False
            reason, details, status = str(error), {"lost": error.kind}, ERROR
        trial.gates.append(GateResult(name, not reason, time.monotonic() - began, reason, details))
        if reason:
            if trial.gate is None:
                trial.status, trial.gate, trial.reason = status, name, reason
            raise _Stop

    def _run(self, trial: _Trial, fidelity: str) -> None:
        config = self.config
        seed = int(digest([config.split_seed(), dsl.canonical_hash(trial.program)])[:8], 16)
        few, rest = self.suite.split(config.screen_contexts)

        def numerics() -> tuple[str, dict[str, Any]]:
            self._ask_checked(replies.Empty, "program", program=trial.program.to_json())
            found = self._ask_checked(replies.Numerics, "numerics", seed=seed)
            return found.failure, found.model_dump(exclude={"failure"})

        self._gate(trial, "numerics", numerics)
        if config.compile_for:
            self._gate(trial, "compile", self._compile)
        self._gate(trial, "fidelity", lambda: self._fidelity(trial))
        try:
            self._gate(trial, "screen", lambda: self._screen(trial, few))
        except _Stop:
            # A known share of what the screen rejects goes on, so that what the gate loses can be counted.
            if trial.status == ERROR or seed / 2**32 >= config.audit_share:
                raise
            trial.conditions["audit"] = True
        if fidelity == SCREEN:
            return
        after = [("accuracy", lambda: self._accuracy(trial, rest))]
        timing = ("speed", lambda: self._speed(trial, seed))
        # What a program reads may depend on data; it is then timed with the counts of its own answers.
        needs_counts = depends_on_data(trial.program) or config.speed == "predicted"  # of decode steps
        after.insert(1 if needs_counts else 0, timing)
        for name, check in after:
            self._gate(trial, name, check)

    def _ask_checked(self, kind: type[replies.R], operation: str, **arguments: Any) -> replies.R:
        try:
            return replies.parse(kind, self._place.ask(operation, **arguments))
        except WorkerLost:
            self._place.give_up()
            raise

    def _compile(self) -> tuple[str, dict[str, Any]]:
        found = self._ask_checked(
            replies.Compiled, "compile", targets=list(self.config.compile_for), geometry=self.geometry.to_json()
        )
        return found.failure, found.model_dump(exclude={"failure"})

    def _fidelity(self, trial: _Trial) -> tuple[str, dict[str, Any]]:
        found = self._ask_checked(replies.Fidelity, "fidelity")
        trial.facts["density"] = found.density
        if found.ties > TIE_SHARE:
            trial.order = "both"
        if len(found.picked) != len(self.suite.watched()):
            self._place.give_up()
            raise WorkerLost("garbage", "the worker told of other recorded steps than asked")
        details = found.model_dump(exclude={"picked"})
        details["needle_hits"] = self.suite.needle_hits(found.picked, trial.program.page_size)
        if not found.finite:
            return "the attention output on recorded steps is not finite", details
        if found.density >= 1 and found.selection_error > found.dense_limit:
            return f"every page is read, yet the output is off by {found.selection_error:.2g} of its norm", details
        return "", details

    def _answers(self, trial: _Trial, rows: Sequence[int], orders: Sequence[str] = ()) -> None:
        """Asks the questions of `rows`; where ties decide much, in both orders, and the worse one counts."""
        forks = [self.suite.forks[row] for row in rows]
        found: dict[str, tuple[replies.Answered, dict[int, float]]] = {}
        for order in orders or (("forward", "reversed") if trial.order == "both" else ("forward",)):
            answered = self._ask_checked(
                replies.Answered, "answers", forks=forks, order=order, protocol=self.config.protocol
            )
            if [len(answer) for answer in answered.answers] != [self.suite.turn(row).generated for row in rows]:
                self._place.give_up()
                raise WorkerLost("garbage", "the worker gave answers of other lengths than asked")
            if not answered.counts.keys() <= self.suite.timed_at.keys():
                self._place.give_up()
                raise WorkerLost("garbage", "the worker counted pages of contexts of other lengths than asked")
            found[order] = answered, self.suite.scores(rows, answered.answers)
        worse = min(found.values(), key=lambda item: sum(item[1].values()))
        trial.sparse.update(worse[1])
        trial.density += worse[0].density
        trial.reads += worse[0].reads
        for context, counts in worse[0].counts.items():
            length = self.suite.timed_at[context]
            most = -(-length // trial.program.page_size)
            trial.counts.setdefault(str(length), []).extend(min(count, most) for count in counts)

    def _screen(self, trial: _Trial, rows: Sequence[int]) -> tuple[str, dict[str, Any]]:
        if self.config.phase == PREFILL:
            self._ask_checked(replies.Empty, "read")
        self._answers(trial, rows)
        outcomes = self.suite.outcomes(self._place.dense, trial.sparse, self._place.tasks())
        upper = statistics.kept_upper(outcomes, seed=self.config.seed) if outcomes else 1.0
        found = statistics.accuracy(outcomes, seed=self.config.seed).kept if outcomes else None
        kept = found.value if found else 0.0
        details: dict[str, Any] = {"answers": len(rows), "kept_upper": min(upper, 1e9), "kept": kept}
        if upper < SCREEN_FLOOR:
            reason = f"keeps less than {SCREEN_FLOOR:g} of dense accuracy: at most {upper:.2f} on {len(rows)} answers"
            return reason, details
        speed = costs.speedup(self._predicted(trial)[self._speed_device])
        details["point"] = [speed, kept]
        return self._ladder.judge(speed, kept), details

    def _accuracy(self, trial: _Trial, rows: Sequence[int]) -> tuple[str, dict[str, Any]]:
        """Every other question, in parts: of a program that certainly keeps too little no more is asked."""
        config, order = self.config, self._order()
        looks = self.suite.looks(rows, order, LOOKS if config.stop_below > 0 else 1)
        for number, look in enumerate(looks, 1):
            self._answers(trial, look)
            p = sequential.keeps_less(self._in_order(trial), config.stop_below)
            if p <= sequential.LEVEL and number < len(looks):
                trial.conditions["stopped"] = {
                    "keeps_less_than": config.stop_below, "p": p, "of": len(self.suite.forks),
                }  # fmt: skip
                break
        return "", {"answers": len(trial.sparse), "order": trial.order}

    def _order(self) -> list[int]:
        return self.suite.drawn(self._place.tasks(), self.config.split_seed())

    def _in_order(self, trial: _Trial) -> list[Outcome]:
        outcomes = self.suite.outcomes(self._place.dense, trial.sparse, self._place.tasks())
        return self.suite.in_order(outcomes, self._order())

    def _speed(self, trial: _Trial, seed: int) -> tuple[str, dict[str, Any]]:
        if self.config.speed == "predicted":
            return "", {"predicted": True}
        timings = {}
        for length in self.config.lengths:
            asked = {
                "geometry": self.geometry.to_json(), "length": length, "seed": seed, "phase": self.config.phase,
                "batch_tokens": self.config.resolved_batch_tokens, "dtype": self.config.resolved_dtype,
                "counts": trial.counts.get(str(length), []),
            }  # fmt: skip
            if self.config.device == "cuda":  # where kernels are compiled when first called
                self._ask_checked(replies.Empty, "rehearse", **asked)
            found = self._ask_checked(replies.Speed, "speed", **asked)
            if found.failure or found.timing is None:
                return found.failure or "the worker gave no timing", {}
            timings[str(length)] = found.timing.model_dump()
            if self.config.device == "cuda" and found.timing.drift > DRIFT:
                moved = 100 * found.timing.drift
                trial.alarms.append(f"clocks changed: at {length} tokens dense attention moved by {moved:.0f} %")
        trial.facts["timings"] = timings
        return "", {length: {k: v for k, v in timing.items() if k != "ratios"} for length, timing in timings.items()}

    # --- the verdict -------------------------------------------------------------------------------------------

    def _conditions(self) -> dict[str, Any]:
        config = self.config
        conditions: dict[str, Any] = {
            "device": f"{config.predicted_device} (predicted)"
            if config.speed == "predicted"
            else device_name(config.device),
            "evaluated_on": device_name(config.device),
            "speed": config.speed,
            "model": config.model,
            "model_digest": model_digest(config.model),
            "dtype": config.resolved_dtype,
            "protocol": config.protocol,
            "score": config.score,
            "phase": config.phase,
            "lengths": list(config.lengths),
            "split": config.split,
            "seed": config.seed,
            "geometry": self.geometry.to_json(),
            "batch_tokens": config.resolved_batch_tokens,
            "threads": self._place.sandbox.threads,
            "versions": versions(),
            "environment": self.environment,
        }
        if config.speed == "measured":
            conditions["tables"] = tuned_tables(config.device)
        if config.data:
            conditions["data"] = self._data
        if any(map(is_worded, config.tasks)):
            conditions["tasks"] = self.suite.digests
            conditions["template"] = config.template
        if self._place.dense:
            hello = self._place.hello
            conditions["dense_scores"] = scores = self._place.scores()
            conditions["left_out"] = sorted(set(scores) - set(self._place.tasks()))
            conditions["network"] = hello.network if hello else ""
            conditions["walls"] = hello.walls if hello else []
        return conditions

    def _verdict(self, trial: _Trial, knobs: Mapping[str, Any], seconds: float) -> Verdict:
        program = trial.program
        conditions = self._conditions() | trial.conditions
        conditions["kv_dtype"] = cache_name(program, DTYPE_NAMES[self.config.resolved_dtype])
        outcomes = self.suite.outcomes(self._place.dense, trial.sparse, self._place.tasks()) if trial.sparse else ()
        found = statistics.accuracy(outcomes, seed=self.config.seed) if outcomes else None
        timings = trial.facts.get("timings", {})
        samples = {length: timing["ratios"] for length, timing in timings.items()}
        speedup = statistics.ratio(samples, seed=self.config.seed) if samples else None
        predicted = self._predicted(trial)
        if self.config.speed == "predicted" and any(gate.name == "speed" for gate in trial.gates):
            value = costs.speedup(predicted[self.config.predicted_device])
            speedup = Estimate(value, value, value)
            by_length = predicted[self.config.predicted_device]
            conditions["batch"] = {length: item["batch"] for length, item in by_length.items()}
        if timings:
            conditions["inputs"] = {length: timing["inputs"] for length, timing in timings.items()}
            conditions["baseline"] = {length: timing["baseline"] for length, timing in timings.items()}
            conditions["batch"] = {length: timing["batch"] for length, timing in timings.items()}
        density = trial.density / trial.reads if trial.reads else trial.facts.get("density")
        return Verdict(
            program=program.name,
            source_hash=dsl.canonical_hash(program),
            structure=dsl.structure_hash(program),
            knobs=dict(knobs),
            status=trial.status,
            gate=trial.gate,
            reason=trial.reason,
            gates=tuple(trial.gates),
            speedup=speedup,
            accuracy=found.kept if found else None,
            density=density,
            per_task=found.per_task if found else {},
            answers=found.answers if found else 0,
            contexts=found.contexts if found else 0,
            outcomes=outcomes,
            non_inferiority=self._decision(trial) if outcomes else {},
            state=self._state(program),
            stages={
                "predicted": predicted,
                "measured_ms": {n: {k: t[k] for k in _MEASURED} for n, t in timings.items()},
            },
            predicted_speedup=costs.speedup(predicted[self.config.predicted_device]),
            speed_samples=samples,
            conditions=conditions,
            seconds=seconds,
            alarms=tuple(trial.alarms) + (found.alarms if found else ()),
        )

    def _decision(self, trial: _Trial) -> dict[str, Any]:
        return sequential.non_inferiority(self._in_order(trial), self.config.margin).to_json()

    def _predicted(self, trial: _Trial) -> dict[str, dict[str, Any]]:
        """Predicted costs by device and length: for the device that is predicted for, and for the one measured on."""
        assert self._place.model is not None
        devices = {self.config.predicted_device} | ({"cpu"} if self.config.device == "cpu" else set())
        return {
            device: costs.predictions(
                trial.program,
                self.geometry,
                self._place.model.layers,
                self.config.lengths,
                self.config.resolved_batch_tokens,
                device,
                trial.counts,
            )
            for device in sorted(devices)
        }


def _knob_values(program: Program, knobs: Mapping[str, Attr] | None) -> dict[str, Attr]:
    """The value of every knob, in its own type."""
    given = dict(knobs or {})
    return {name: knob.check(given.get(name, knob.default)) for name, knob in program.knobs.items()}
