"""Why the programs of a frontier are good: what each of their parts buys, measured, and what they are nearest to.

A member without one part (`search_spaces.ablations`) is evaluated as the campaign evaluated its trials: same samples,
same conditions, in full. What the record has already is not measured again. Every measurement is an event of the store
as soon as it is made, so that an interrupted explanation goes on where it stood.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vortexlab.agent.pool import Evaluation
from vortexlab.agent.run import Run
from vortexlab.agent.store import Store
from vortexlab.agent.trials import History, Trial
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.statistics import paired_differences
from vortexlab.evaluator.verdict import ERROR, Estimate, Verdict, split
from vortexlab.search_spaces.ablations import Ablation, ablations
from vortexlab.search_spaces.nearest import Nearest, nearest

#: A difference is seen when its interval lies beyond this, which tables round to 0.001.
SEEN = 0.0005


@dataclass(frozen=True)
class Part:
    """A part of a member. `verdict` is that of the program without it (None: not measured yet), `trial` its id where a
    trial of the campaign was that program.

    `speedup` and `accuracy` are what the part buys: the member's less those without the part, paired over contexts;
    None where one of the two was not measured in full.
    """

    ablation: Ablation
    verdict: Verdict | None
    trial: str
    speedup: Estimate | None
    accuracy: Estimate | None

    @property
    def buys(self) -> list[str]:
        return [name for name, gap in self._gaps() if gap.low > SEEN]

    @property
    def costs(self) -> list[str]:
        return [name for name, gap in self._gaps() if gap.high < -SEEN]

    @property
    def is_idle(self) -> bool:
        """Whether the program is measured without the part and is no worse for it, as far as can be seen."""
        return self.speedup is not None and self.accuracy is not None and not self.buys

    def _gaps(self) -> list[tuple[str, Estimate]]:
        named = (("speed-up", self.speedup), ("accuracy", self.accuracy))
        return [(name, gap) for name, gap in named if gap is not None]

    @property
    def effect(self) -> str:
        """In words: what the part buys and costs."""
        verdict = self.verdict
        if verdict is None:
            return "not measured yet"
        if self.speedup is None or self.accuracy is None:
            if verdict.status == ERROR:
                return f"not known: the worker was lost without it ({verdict.gate})"
            return f"needed: without it gate {verdict.gate} says no"
        words = f"buys {' and '.join(self.buys) or 'nothing that can be seen'}"
        return f"{words}, costs {' and '.join(self.costs)}" if self.costs else words

    def to_json(self) -> dict[str, Any]:
        verdict = self.verdict

        def plain(estimate: Estimate | None) -> dict[str, float] | None:
            return estimate.to_json() if estimate else None

        return {
            "change": self.ablation.change,
            "source": self.ablation.source,
            "knobs": dict(self.ablation.knobs),
            "hash": self.ablation.hash,
            "trial": self.trial,
            "status": verdict.status if verdict else "",
            "gate": verdict.gate if verdict else None,
            "reason": verdict.reason if verdict else "",
            "speedup": plain(verdict.speedup if verdict else None),
            "accuracy": plain(verdict.accuracy if verdict else None),
            "speedup_bought": plain(self.speedup),
            "accuracy_bought": plain(self.accuracy),
            "effect": self.effect,
        }


@dataclass(frozen=True)
class Explanation:
    """One member: the nearest published program, and its parts."""

    trial: Trial
    nearest: Nearest
    parts: tuple[Part, ...]

    @property
    def left(self) -> int:
        """Parts that are not measured yet."""
        return sum(part.verdict is None for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        verdict = self.trial.verdict
        assert verdict is not None and verdict.speedup is not None and verdict.accuracy is not None
        return {
            "id": self.trial.id,
            "name": self.trial.proposal.name,
            "speedup": verdict.speedup.to_json(),
            "accuracy": verdict.accuracy.to_json(),
            "nearest": self.nearest.to_json(),
            "parts": [part.to_json() for part in self.parts],
        }


def members(run: Run, ids: Iterable[str] = ()) -> list[Trial]:
    """The named trials, or the frontier, fastest first.

    Raises `VortexError` for unknown or repeated ids, trials that were not accepted, and an empty frontier.
    """
    chosen = [run.history.find(item) for item in ids]
    for trial in chosen:
        if trial.point is None:
            assert trial.verdict is not None
            raise VortexError(
                f"{trial.id} was not accepted (gate {trial.verdict.gate}: {trial.verdict.reason}), so there is nothing "
                "to explain; name a trial of `vortex leaderboard`"
            )
    if len({trial.slot for trial in chosen}) < len(chosen):
        raise VortexError("a trial is named twice; name every trial once")
    chosen = chosen or run.history.frontier()
    if not chosen:
        raise VortexError(f"run {run.name!r} has no frontier yet, so there is nothing to explain")
    return chosen


def recorded(run: Run, trials: Iterable[Trial] | None = None) -> list[Explanation]:
    """The trials (by default the frontier) with the parts that were measured so far; measures nothing."""
    history = run.history
    chosen = history.frontier() if trials is None else trials
    return [_explanation(history, trial, history.ablations.get(trial.id, ())) for trial in chosen]


def explain(
    run: Run,
    ids: Iterable[str] = (),
    *,
    evaluations: int | None = None,
    evaluator: Callable[[EvaluationConfig], Evaluation] | None = None,
    environment: Callable[[EvaluationConfig], str] | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> list[Explanation]:
    """Measures what is missing, `evaluations` programs at most, and returns the members with all their parts.

    Raises `VortexError` as `members` does, when the run is being written, and when something is to be measured and this
    is not where the run was. With `evaluations` 0 the run is only read.
    """
    chosen = members(run, ids)
    parts = {trial.id: ablations(trial.proposal.source, trial.knobs) for trial in chosen}
    done = {(name, part.hash) for name, found in run.history.ablations.items() for part in found}
    if evaluations != 0 and any((name, part.hash) not in done for name, found in parts.items() for part in found):
        with Store.write(run.folder) as store:
            work = _Work(run, store, evaluations, evaluator or _evaluator, environment or _environment, on_progress)
            try:
                for trial in chosen:
                    for part in parts[trial.id]:
                        work.measure(trial, part)
            finally:
                work.close()
    return [_explanation(run.history, trial, parts[trial.id]) for trial in chosen]


class _Work:
    """The measurements of one call; the evaluator is opened when the first one needs it."""

    def __init__(
        self,
        run: Run,
        store: Store,
        evaluations: int | None,
        evaluator: Callable[[EvaluationConfig], Evaluation],
        environment: Callable[[EvaluationConfig], str],
        on_progress: Callable[[str], None] | None,
    ):
        self.run, self.store, self.left, self.on_progress = run, store, evaluations, on_progress
        self._make, self._environment = evaluator, environment
        self._evaluator: Evaluation | None = None
        now = History.of(store.events())  # what was measured since the run was read counts
        run.history.ablations, run.history.ablated = now.ablations, now.ablated

    def measure(self, trial: Trial, part: Ablation) -> None:
        """Records the trial's part, with a verdict unless the record has it; nothing when no evaluations are left."""
        history = self.run.history
        if any(part.hash == item.hash for item in history.ablations.get(trial.id, ())):
            return
        head, detail = None, None
        if _found(history, part.hash)[0] is None:
            if self.left == 0:
                return
            if self.left is not None:
                self.left -= 1
            if self._evaluator is None:
                self._evaluator = self._opened()
            if self.on_progress is not None:
                self.on_progress(f"{trial.id} {trial.proposal.name} {part.change}")
            head, rest = split(self._evaluator.evaluate(part.source, dict(part.knobs)).to_json())
            detail = {"verdict": rest}
        data = {"id": trial.id, "change": part.change, "source": part.source, "knobs": dict(part.knobs),
                "hash": part.hash, "verdict": head}  # fmt: skip
        history.add(self.store.append("ablation", data, detail=detail))

    def _opened(self) -> Evaluation:
        """The run's own evaluator, except that every program is measured in full, whatever others reached."""
        config = self.run.config.evaluation
        if self._environment(config) != self.store.first().data["environment"]:
            raise VortexError(
                f"run {self.run.name!r} was measured under other conditions (machine, versions, model, data or "
                "settings), so its parts cannot be measured here; --evaluations 0 prints what is recorded"
            )
        return self._make(replace(config, promoted=1.0, audit_share=1.0))

    def close(self) -> None:
        if self._evaluator is not None:
            self._evaluator.close()


def _found(history: History, mark: str) -> tuple[Verdict | None, str]:
    """What the record says of the program with this canonical hash, and the trial that it was, if it was one."""
    for trial in history.trials:
        if trial.hash == mark and trial.verdict is not None and _is_settled(trial.verdict):
            return trial.verdict, trial.id
    return history.ablated.get(mark), ""


def _is_settled(verdict: Verdict) -> bool:
    """Whether a verdict says all there is to say; not for what was only behind others on the screen."""
    return verdict.gate != "screen" or (verdict.speedup is not None and verdict.accuracy is not None)


def _explanation(history: History, trial: Trial, found: Sequence[Ablation]) -> Explanation:
    assert trial.verdict is not None
    parts = []
    for item in found:
        verdict, other = _found(history, item.hash)
        gaps = paired_differences(verdict, trial.verdict) if verdict else None
        speedup, accuracy = gaps or (None, None)
        parts.append(Part(item, verdict, other, speedup, accuracy))
    return Explanation(trial, nearest(trial.proposal.source, trial.knobs), tuple(parts))


def _evaluator(config: EvaluationConfig) -> Evaluation:
    from vortexlab.evaluator.evaluator import Evaluator

    return Evaluator(config)


def _environment(config: EvaluationConfig) -> str:
    return config.environment_key()
