"""Attacks 46 to 49 and those of S1 to S14 that a program, or a choice among programs, carries out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from vortexlab.evaluator import statistics
from vortexlab.evaluator.attacks.attack import NO_GAIN, Attack, lost, rejected
from vortexlab.evaluator.config import SPLITS, EvaluationConfig
from vortexlab.evaluator.evaluator import Evaluator
from vortexlab.evaluator.fronts import frontier_probability
from vortexlab.evaluator.measured import Measured
from vortexlab.evaluator.samples import make_suite
from vortexlab.evaluator.sandbox import Limits, Sandbox
from vortexlab.evaluator.verdict import ACCEPTED, Estimate, Outcome, Verdict

CONFIG = EvaluationConfig(
    tasks=("needles", "keys"), lengths=(1024,), contexts=3, compile_for=(), speed="predicted", audit_share=0.0,
    threads=1,
)  # fmt: skip
_PAGE = "@program(page=16)\nclass P:\n    def select(ctx):\n        return {}\n"
_SCORED = """@program(page=16)
class P:
    def summarize(k):
        return dict(c=k.mean(token){})
    def score(q, s):
        return dot(q, s.c, channel).max(head)
    def select(score, ctx):
        return {}
"""
#: A program that ignores what is asked may keep at most this share of dense accuracy.
_MOST_KEPT = 0.6
_open: list[Evaluator] = []


@contextmanager
def evaluator() -> Iterator[Evaluator]:
    """The one that `shared` opened, or one for this attack alone."""
    if _open:
        yield _open[-1]
        return
    with Evaluator(CONFIG) as found:
        yield found


@contextmanager
def shared() -> Iterator[None]:
    with Evaluator(CONFIG) as found:
        _open.append(found)
        try:
            yield
        finally:
            _open.remove(found)


def _weighed(verdict: Verdict) -> str:
    """Whether the verdict of a program that ignores the question shows it: little accuracy, perhaps too little for the
    screen, or all of the density and no speed."""
    if verdict.gate == "screen":
        return NO_GAIN
    if verdict.accuracy is None or verdict.density is None or verdict.speedup is None:
        return rejected(verdict.gate or "?")
    whole = verdict.density > 0.999 and verdict.speedup.value <= 1.05
    return NO_GAIN if verdict.accuracy.value <= _MOST_KEPT or whole else f"accepted: {verdict.accuracy} kept"


def _programs(judge: Callable[[Verdict], str], *sources: tuple[str, str]) -> Callable[[], Iterable[tuple[str, str]]]:
    def run() -> Iterator[tuple[str, str]]:
        with evaluator() as found:
            for name, source in sources:
                yield name, judge(found.evaluate(source))

    return run


def _layers_dense(verdict: Verdict) -> str:
    """Half of the layers read everything: so does half of the density, and the predicted step has both."""
    told = verdict.density is not None and verdict.density > 0.3 and verdict.speedup is not None
    return NO_GAIN if told and verdict.speedup.value < 4 else f"accepted: density {verdict.density}"  # type: ignore[union-attr]


def _screened(verdict: Verdict) -> str:
    return rejected(verdict.gate) if verdict.gate else "accepted"


def _both_orders(verdict: Verdict) -> str:
    gate = verdict.gate_result("accuracy")
    if gate is None:
        return rejected(verdict.gate or "?")
    return NO_GAIN if gate.details["order"] == "both" else "accepted: luck of the order counts"


class _Rambling(Sandbox):
    """The worker, whose answers go on and on."""

    def request(self, message: dict[str, Any], *, seconds: float | None = None) -> dict[str, Any]:
        reply = super().request(message, seconds=seconds)
        if message["op"] == "answers":
            reply["ok"]["answers"] = [answer + answer for answer in reply["ok"]["answers"]]
        return reply


def _rambling() -> Iterator[tuple[str, str]]:
    limits = Limits(CONFIG.memory_mb, CONFIG.seconds)
    config = replace(CONFIG, tasks=("keys",), lengths=(320,), contexts=2)
    with Evaluator(config, sandbox=_Rambling(limits, threads=1)) as found:
        verdict = found.evaluate(_PAGE.format("everything()"))
    kind = verdict.gates[-1].details.get("lost", "") if verdict.gates else ""
    yield "twice the answer", lost(kind) if kind else f"accepted: {verdict.status}"


def _lucky() -> Iterator[tuple[str, str]]:
    """Twenty programs that are the same, told apart by noise alone: none may be sure of its place in front."""
    import numpy as np

    rng, verdicts = np.random.default_rng(0), []
    for number in range(20):
        outcomes = tuple(Outcome("t", f"c{n}", 64, 4, 4, int(rng.binomial(4, 0.7))) for n in range(24))
        kept = statistics.accuracy(outcomes).kept
        verdicts.append(Verdict(f"p{number}", "0" * 64, "1" * 64, {}, ACCEPTED, speedup=Estimate(2, 2, 2),
                                accuracy=kept, outcomes=outcomes))  # fmt: skip
    best = max(range(20), key=lambda i: verdicts[i].accuracy.value)  # type: ignore[union-attr]
    sure = frontier_probability(*statistics.joint_draws(Measured.of(verdicts)))[best]
    yield "the best of twenty equals", NO_GAIN if sure < 0.75 else f"accepted: frontier probability {sure:.2f}"
    interval = verdicts[best].accuracy
    assert interval is not None
    yield "its interval", NO_GAIN if interval.low <= 0.75 else f"accepted: {interval}"


def _splits() -> Iterator[tuple[str, str]]:
    """What a search has seen is not what a finalist is measured on."""
    drawn = [
        {tuple(sample.context) for sample in make_suite(replace(CONFIG, contexts=6).with_split(split)).samples}
        for split in SPLITS
    ]
    apart = len(set.union(*drawn)) == sum(map(len, drawn))
    yield "search, validation and sealed contexts", NO_GAIN if apart else "accepted: splits share contexts"


def _attack(line: str, tries: str, expected: str, wall: str, run: Callable[[], Iterable[tuple[str, str]]]) -> Attack:
    return Attack(line, "quality", tries, expected, wall, run)


_WINDOW = _PAGE.format("first(1) | last(maximum(7, floor(0.05 * ctx.pages) - 1))")
ATTACKS = (
    _attack("A46", "programs that ignore the question: random pages, the first, a window, everything", NO_GAIN,
            "accuracy kept, effective density",
            _programs(_weighed, ("random", _PAGE.format("random(maximum(1, floor(0.05 * ctx.pages) - 1))")),
                      ("first page", _PAGE.format("first(1)")), ("sink and window", _WINDOW),
                      ("everything", _PAGE.format("everything()")))),
    _attack("A48", "positions learned by heart", NO_GAIN, "depths and lengths are drawn",
            _programs(_weighed, ("fixed pages", _PAGE.format("first(2) | last(2) | stride(31)")))),
    _attack("A49", "a lucky seed", NO_GAIN, "frontier probability, other splits for finalists", _lucky),
    _attack("S2", "a budget larger than the context", NO_GAIN, "effective density",
            _programs(_weighed, ("512 of 64 pages", _SCORED.format("", "topk(score, 512)")))),
    _attack("S3", "half of the layers dense", NO_GAIN, "density and cost over all layers",
            _programs(_layers_dense, ("every second layer",
                                      _PAGE.format("where(ctx.layer % 2 == 0, everything(), last(1))")))),
    _attack("S4", "the template's positions instead of the fact", NO_GAIN, "facts at random depths",
            _programs(_weighed, ("sink and window", _WINDOW))),
    _attack("S5", "answers that go on and on", lost("garbage"), "the length of answers is fixed", _rambling),
    _attack("S9", "a gate that nothing fails", rejected("screen"), "a control that is known to fail",
            _programs(_screened, ("the last page", _PAGE.format("last(1)")))),
    _attack("S10", "selection on what is tested", NO_GAIN, "three splits", _splits),
    _attack("S12", "ties broken luckily", NO_GAIN, "both orders are answered, the worse counts",
            _programs(_both_orders, ("all scores equal",
                                     _SCORED.format(" * 0", "topk(score, ctx.pages // 2) | last(2)")))),
)  # fmt: skip
