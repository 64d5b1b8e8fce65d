"""Where programs are evaluated: here, one after the other, or on a cluster (`agent.cluster`), several at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

from vortexlab.dsl.ir import Attr
from vortexlab.evaluator.ladder import Point
from vortexlab.evaluator.verdict import Verdict

if TYPE_CHECKING:
    from vortexlab.agent.config import CampaignConfig

FULL = "full"


class Evaluation(Protocol):
    """What a campaign needs of `evaluator.Evaluator`."""

    @property
    def environment(self) -> str: ...

    def rank_among(self, points: Iterable[Point]) -> None: ...

    def evaluate(self, source: str, knobs: dict[str, Attr] | None = None, *, fidelity: str = FULL) -> Verdict: ...

    def close(self) -> None: ...


class Pool(Protocol):
    """Takes programs and gives their verdicts back in any order.

    `width` evaluations run at a time. `submit` ranks a program on the screen among `points`, those of the programs
    that it is to be compared with; its future may be done from another thread. `oracle` asks what would be kept by the
    best choice of as many pages (`evaluator.oracle`), None where the evaluator cannot tell. `close` gives up what still
    runs.
    """

    @property
    def environment(self) -> str: ...

    @property
    def width(self) -> int: ...

    def submit(self, source: str, knobs: Mapping[str, Attr], points: Iterable[Point]) -> Future[Verdict]: ...

    def oracle(self, source: str, knobs: Mapping[str, Attr]) -> Future[Verdict | None]: ...

    def close(self) -> None: ...


class Here:
    """One evaluator in this process: `submit` returns when the verdict is there, and raises what the evaluator does."""

    width = 1

    def __init__(self, evaluator: Evaluation):
        self._evaluator = evaluator

    @property
    def environment(self) -> str:
        return self._evaluator.environment

    def submit(self, source: str, knobs: Mapping[str, Attr], points: Iterable[Point]) -> Future[Verdict]:
        self._evaluator.rank_among(points)
        done: Future[Verdict] = Future()
        done.set_result(self._evaluator.evaluate(source, dict(knobs), fidelity=FULL))
        return done

    def oracle(self, source: str, knobs: Mapping[str, Attr]) -> Future[Verdict | None]:
        done: Future[Verdict | None] = Future()
        done.set_result(oracle_of(self._evaluator, source, knobs))
        return done

    def close(self) -> None:
        self._evaluator.close()


def oracle_of(evaluator: Evaluation, source: str, knobs: Mapping[str, Attr]) -> Verdict | None:
    """What the evaluator says of the best choice of pages; one that is no `evaluator.Evaluator` need not know."""
    found: Verdict | None = evaluator.oracle(source, dict(knobs)) if hasattr(evaluator, "oracle") else None
    return found


def make_pool(config: CampaignConfig, environment: str = "") -> Pool:
    """The pool that a campaign asks for: several evaluations at a time are Ray's work. `environment` is that of a
    campaign that was begun before. Raises `VortexError` when a model, device or cluster cannot be used."""
    if config.cluster or config.parallel > 1:
        from vortexlab.agent.cluster import Cluster

        return Cluster(config.evaluation, config.cluster or "local", environment=environment)
    from vortexlab.evaluator.evaluator import Evaluator

    return Here(Evaluator(config.evaluation))
