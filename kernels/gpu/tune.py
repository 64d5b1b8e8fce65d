"""The tuner: which tiles, warps, stages and splits are faster than the rule's, measured within a bound of time.

The rule's choice is always among the candidates. Every other one must first give its output, within rounding. Then
fields are halved: all tiles under the rule's splits, other splits for the best of them, the best again for longer. What
is left meets the rule's choice in interleaved repeats, and takes its place only where it is faster in all but one of
them and by more than their noise. What time does not suffice for keeps the rule's choice, and the report says so.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor

from vortexlab.dsl.errors import VortexError
from vortexlab.kernels.gpu import launch
from vortexlab.kernels.gpu.tune_trial import UNIT, KernelTrial, Pool, Problem, Rules, Timer, Trial, conditions
from vortexlab.kernels.gpu.tuning import Case, Choice, Entry, sources
from vortexlab.kernels.precision import BYTES

#: Seconds that a candidate is timed for in the first rounds, and in each of the last repeats.
SPAN, REPEAT_SPAN, REPEATS = 0.01, 0.006, 9
#: Tiles that go on to other splits, choices that are timed again, and that meet the rule's in the end.
BEST_TILES, BEST, LAST = 3, 6, 3
#: Share of a case's time in which new candidates begin; the rest is for the repeats.
EXPLORING = 0.7
#: What a winner must gain at least, in all repeats but one.
MARGIN = 0.01

#: Tiles of the decode kernels, with warps and stages for each: smaller ones want more stages to have bytes under way.
DECODE: dict[str, dict[int, tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "attend": {32: ((4,), (3, 4, 5)), 64: ((4, 8), (2, 3, 4, 5)), 128: ((4, 8), (2, 3, 4))},
    "attend_latent": {16: ((4, 8), (3, 4, 5)), 32: ((4, 8), (2, 3, 4, 5)), 64: ((4, 8), (2, 3))},
}

#: Called with a line of progress.
Say = Callable[[str], None]
#: Tiles that cannot run, and why, by the small problem that tells.
Failures = dict[tuple[Problem, Choice], str]


@dataclass
class Outcome:
    """What came of one case. `us`, `usual_us`: medians of the interleaved repeats, None where it came to none.

    `tried` candidates of `candidates` were timed; `failed` says which could not run or were wrong, and why; `reason`
    says why the rule's choice stays, and is empty where it does not.
    """

    problem: Problem
    usual: Choice
    choice: Choice
    us: float | None = None
    usual_us: float | None = None
    noise: float = 0.0
    candidates: int = 0
    tried: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    reason: str = ""

    @property
    def gain(self) -> float:
        """How much faster the choice is, as a share of its own time."""
        return self.usual_us / self.us - 1 if self.us and self.usual_us else 0.0

    def entry(self, under: dict[str, Any]) -> Entry | None:
        """The table's entry; None where the rule's choice stays."""
        if self.reason or self.us is None or self.usual_us is None:
            return None
        case = self.problem.case
        times = {"us": round(self.us, 3), "usual_us": round(self.usual_us, 3), "noise": round(self.noise, 4)}
        return Entry(case, self.choice, self.usual, sources(case.kernel), **times, conditions=under)

    def to_json(self) -> dict[str, Any]:
        return {
            "case": self.problem.case._asdict(), "context": self.problem.length, "usual": self.usual.to_json(),
            "choice": self.choice.to_json(), "us": self.us, "usual_us": self.usual_us, "gain": self.gain,
            "noise": self.noise, "candidates": self.candidates, "tried": self.tried, "failed": self.failed,
            "reason": self.reason,
        }  # fmt: skip


def tiles(problem: Problem, usual: Choice, shared: int) -> list[Choice]:
    """Tiles, warps and stages that may be worth a try beside the rule's, on a device with `shared` bytes of shared
    memory; those that surely do not fit it are left out."""
    kernel, static = problem.kernel, problem.static
    if kernel == "attend_prefill":
        least, usual_rows = max(16, triton.next_power_of_2(static.group)), usual.rows or 0
        rows = {usual_rows, max(least, usual_rows // 2)}
        space = [(tile, warps, stages, row) for row in sorted(rows) for tile in (32, 64, 128) for warps in (4, 8)
                 for stages in (2, 3, 4)]  # fmt: skip
    else:
        space = [
            (tile, warps, stages, None)
            for tile, (counts, depths) in DECODE[kernel].items()
            for warps in counts
            for stages in depths
        ]
    width = static.head_dim if static.latent else 2 * static.head_dim
    # At least two stages less than there are hold a whole tile.
    fits = (
        Choice(tile, warps, stages, None, row)
        for tile, warps, stages, row in space
        if (stages - 2) * tile * width * BYTES[problem.dtype] <= shared
    )
    return [choice for choice in fits if choice.tiles != usual.tiles]


def other_tiles(rules: Rules) -> list[Choice]:
    """`tiles` for a problem on its device; none where the kernel has only one shape."""
    if rules.has_fixed_tiles:
        return []
    return tiles(rules.problem, rules.usual, launch.shared_bytes(rules.device))


def with_splits(choice: Choice, splits: int | None) -> Choice:
    return Choice(choice.tile, choice.warps, choice.stages, splits, choice.rows)


def other_splits(splits: int, longest: int, tile: int) -> list[int]:
    """One run, and runs around the rule's, as many as there are tiles at most."""
    most = min(256, max(1, -(-longest // tile)))
    around = (1, splits // 2, 3 * splits // 4, 3 * splits // 2, 2 * splits)
    return sorted({x for x in around if 1 <= x <= most} - {splits})


def same(found: Tensor, wanted: Tensor) -> bool:
    """Whether two outputs differ by no more than the order of sums and the rounding of their elements."""
    if found.shape != wanted.shape or not bool(found.isfinite().all()):
        return False
    unit, a, b = UNIT[wanted.dtype], found.float(), wanted.float()
    rms = b.square().mean(-1, keepdim=True).sqrt()
    return bool(((a - b).abs() <= unit * (b.abs() + rms)).all())


class Search:
    """The search for one case until `ends`, in seconds of `clock`.

    `lost`: the device computes nothing any more, and whoever searches should end.
    """

    def __init__(self, trial: Trial, outcome: Outcome, ends: float, clock: Callable[[], float] = time.monotonic):
        self._trial, self.outcome, self._clock = trial, outcome, clock
        now = clock()
        self._ends, self._explores = ends, now + EXPLORING * (ends - now)
        self.lost = False
        self._timers: dict[Choice, Timer] = {}

    def run(self, shapes: Sequence[Choice], longest: int) -> Outcome:
        """`shapes`: the candidates but for their splits; `longest`: tokens of the longest list."""
        out, usual = self.outcome, self._trial.usual
        try:
            self._wanted = self._trial.run(usual)
            self._timers[usual] = self._trial.timer(usual)
        except Exception as error:
            out.reason = f"the rule's choice does not run: {_line(error)}"
            self.lost = not isinstance(error, torch.OutOfMemoryError)
            return out
        times = {usual: statistics.median(self._timers[usual](SPAN))}
        first = [with_splits(shape, self._trial.splits(shape)) for shape in shapes]
        out.candidates = len(first)
        self._explore(first, times)
        if usual.splits is not None:
            second = [
                with_splits(choice, splits)
                for choice in self._best(times, BEST_TILES)
                for splits in other_splits(choice.splits or 1, longest, choice.tile)
            ]
            out.candidates += len(second)
            self._explore(second, times)
        again = self._best(times, BEST)
        for choice in again:
            if self._clock() < self._explores:
                times[choice] = statistics.median(self._timers[choice](3 * SPAN))
        self._decide([choice for choice in self._best({c: times[c] for c in again}, LAST) if choice != usual])
        if not out.reason and out.choice == usual:
            out.reason = "nothing is faster by more than the noise"
        return out

    def _best(self, times: dict[Choice, float], count: int) -> list[Choice]:
        return sorted(times, key=lambda choice: times[choice])[:count]

    def _explore(self, choices: Iterable[Choice], times: dict[Choice, float]) -> None:
        """Checks and times candidates while there is time; those that fail are noted."""
        for choice in choices:
            if choice in times:
                continue
            if self.lost or self._clock() >= self._explores:
                return
            try:
                if not same(self._trial.run(choice), self._wanted):
                    raise VortexError("another output than the rule's choice")
                self._timers[choice] = self._trial.timer(choice)
                times[choice] = statistics.median(self._timers[choice](SPAN))
                self.outcome.tried += 1
            except Exception as error:
                self.outcome.failed[str(choice)] = _line(error)
                self._timers.pop(choice, None)
                self._see_whether_lost()

    def _see_whether_lost(self) -> None:
        """A kernel that went astray leaves a context in which nothing runs any more."""
        try:
            self.lost = not same(self._trial.run(self._trial.usual), self._wanted)
        except Exception:
            self.lost = True
        if self.lost:
            self.outcome.reason = "the device was lost to a candidate"

    def _decide(self, last: list[Choice]) -> None:
        """The last ones and the rule's in turn."""
        out, usual = self.outcome, self._trial.usual
        if self.lost:
            return
        found: dict[Choice, list[float]] = {choice: [] for choice in (usual, *last)}
        for number in range(REPEATS):
            if self._clock() >= self._ends:
                out.reason = f"time was over after {number} of {REPEATS} repeats"
                return
            for choice in list(found)[:: -1 if number % 2 else 1]:  # no one always comes after the same other
                found[choice].append(statistics.median(self._timers[choice](REPEAT_SPAN)))
        out.usual_us = out.us = statistics.median(found[usual])
        best = min(found, key=lambda choice: statistics.median(found[choice]))
        ratios = sorted(a / b for a, b in zip(found[usual], found[best], strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4)
        # Faster in all repeats but one, and by more than the quartiles are apart.
        if best != usual and ratios[1] - 1 > MARGIN and middle - 1 > high - low:
            out.choice, out.us, out.noise = best, statistics.median(found[best]), high - low


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


def tune(
    problems: Sequence[Problem],
    device: torch.device,
    seconds: float,
    *,
    each: float | None = None,
    failed: Failures | None = None,
    say: Say = lambda line: None,
) -> Iterator[tuple[Outcome, Entry | None]]:
    """Tunes problems one after the other and yields what came of each, with the entry for a table where there is one.

    `seconds`: nothing is begun after so many; each problem may take its share of what is left, or `each`. `failed`:
    tiles that are known not to run, and why. A problem that does not fit the device is an outcome with a reason. Ends
    early where the device is lost.
    """
    ends, under = time.monotonic() + seconds, conditions(device)
    pool = Pool(device)
    for number, problem in enumerate(problems):
        now = time.monotonic()
        if now >= ends:
            say(f"time is over: {len(problems) - number} of {len(problems)} cases keep the rule's choice")
            return
        share = (ends - now) / (len(problems) - number)
        outcome, lost = _tune(problem, pool, min(ends, now + (each or share)), failed or {})
        say(describe(outcome))
        yield outcome, outcome.entry(under)
        if lost:
            say("the device computes nothing any more: the rest keeps the rule's choice")
            return


def _tune(problem: Problem, pool: Pool, ends: float, failed: Failures) -> tuple[Outcome, bool]:
    try:
        trial = KernelTrial(problem, pool)
    except (VortexError, RuntimeError) as error:  # torch's error of memory is one
        usual = Rules(problem, pool.device).usual
        return Outcome(problem, usual, usual, reason=_line(error)), False
    search = Search(trial, Outcome(problem, trial.usual, trial.usual), ends)
    shapes, small = other_tiles(trial), problem.small()
    known = {shape: failed[small, shape] for shape in shapes if (small, shape) in failed}
    search.outcome.failed |= {str(shape): why for shape, why in known.items()}
    return search.run([shape for shape in shapes if shape not in known], problem.case.length), search.lost


def describe(outcome: Outcome) -> str:
    """One line of progress."""
    tried = f"{outcome.tried} of {outcome.candidates} candidates"
    if outcome.reason:
        times = "" if outcome.usual_us is None else f", {outcome.usual_us:.1f} us"
        return f"{outcome.problem}: the rule stays{times} ({outcome.reason}; {tried})"
    return (
        f"{outcome.problem}: {outcome.usual_us:.1f} -> {outcome.us:.1f} us, {100 * outcome.gain:.1f} % faster with "
        f"{outcome.choice} ({tried})"
    )


def measured(outcomes: Iterable[Outcome]) -> list[Case]:
    """The cases whose entries a table should drop or replace: those that were compared to the end."""
    return [outcome.problem.case for outcome in outcomes if outcome.us is not None]
