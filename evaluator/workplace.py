"""Where programs are evaluated: a worker that has read the contexts, and what dense attention answered there."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator import replies, turns
from vortexlab.evaluator.config import AGREEMENT, EvaluationConfig, device_name, model_digest, versions
from vortexlab.evaluator.context_cache import ContextCache
from vortexlab.evaluator.replies import Failed
from vortexlab.evaluator.samples import Suite
from vortexlab.evaluator.sandbox import LEFT_OUT, Sandbox, WorkerLost
from vortexlab.evaluator.tasks.cache import cache_folder

_OPEN_SECONDS = 3600.0


class Workplace:
    """The worker is started by `open`, and again after every loss; what it computed of the contexts is kept in a
    scratch folder meanwhile.

    Once it is open, `model` says what the model looks like, `hello` what the worker has, `dense` the score of dense
    attention by row of the suite; where programs are judged by agreement, `suite` has its answers. `prefilled` counts
    contexts that workers read densely so far, those that were found on disk aside; None before the first `open`.
    """

    def __init__(self, config: EvaluationConfig, suite: Suite, sandbox: Sandbox):
        self.config, self.suite, self.sandbox = config, suite, sandbox
        self.opened = False
        self.prefilled: int | None = None
        self.dense: dict[int, float] = {}
        self.model: replies.ModelGeometry | None = None
        self.hello: replies.Hello | None = None
        self._contexts: ContextCache | None = None

    def open(self) -> None:
        """Starts the worker, reads the contexts and answers them densely, unless that is done already.

        Raises `VortexError` when that fails, since then no program can be evaluated.
        """
        if self.opened and self.sandbox.running and self.sandbox.intact:
            return
        config = self.config
        try:
            self.sandbox.start()
            if config.device == "cuda" and not self.sandbox.sealed:
                from vortexlab.kernels.gpu import tuning

                tuning.lend(device_name("cuda"), self.sandbox.scratch)
            self.hello = self._greet()
            cache = self._cache()
            if cache is not None and self.prefilled is None:
                cache.lend(self.sandbox.scratch)
            answer = self.ask(
                "open",
                _OPEN_SECONDS,
                model=config.model,
                dtype=config.resolved_dtype,
                contexts=self.suite.contexts(),
            )
            opened = replies.parse(replies.Opened, answer)
            self.model, self.prefilled = opened.model, (self.prefilled or 0) + opened.prefilled
            if opened.note:
                _say(replies.plain(opened.note))
            if cache is not None and opened.prefilled:
                cache.keep(self.sandbox.scratch)
            dense = replies.parse(
                replies.Dense, self.ask("dense", _OPEN_SECONDS, forks=self.suite.forks, watch=self.suite.watched())
            )
        except Failed as error:
            raise VortexError(str(error)) from error
        except WorkerLost as error:
            raise VortexError(f"the evaluation worker cannot be opened: {error}") from error
        rows = range(len(self.suite.forks))
        if [len(answer) for answer in dense.answers] != [self.suite.turn(row).generated for row in rows]:
            raise VortexError("the evaluation worker gave answers of other lengths than asked")
        if config.score == AGREEMENT:
            self.suite = replace(self.suite, dense=tuple(map(tuple, dense.answers)))
        self.dense = self.suite.scores(rows, dense.answers)
        if not self.tasks():
            scores = ", ".join(f"{name} {score:.2f}" for name, score in self.scores().items())
            raise VortexError(
                f"dense attention scores below {self.config.dense_floor:g} on every task ({scores}), so nothing tells "
                "programs apart; ask what this model can answer (--tasks, --data), lower --dense-floor, or judge by "
                "agreement with dense attention's own answers (--score agreement)"
            )
        if not self.sandbox.sealed:
            self.sandbox.seal()
        self.opened = True

    def _greet(self) -> replies.Hello:
        """What a new worker says first. Where a GPU does not work in it, names the wall that keeps it from working."""
        words = {"device": self.config.device, "threads": self.sandbox.threads}
        try:
            return replies.parse(replies.Hello, self.ask("hello", _OPEN_SECONDS, **words))
        except (Failed, WorkerLost) as error:
            wall = "" if self.config.device == "cpu" else self.sandbox.blame({"op": "hello", **words})
            if not wall:
                raise
            raise VortexError(
                f"the GPU does not work behind the sandbox's wall {wall!r} ({error}); it does with {LEFT_OUT}={wall} "
                "in the environment, which leaves that wall out"
            ) from error

    def _cache(self) -> ContextCache | None:
        """The place of this evaluator's contexts on disk, by all that their keys and values depend on."""
        config = self.config
        if self._contexts is None and config.context_cache > 0:
            assert self.hello is not None
            key = {
                "model": model_digest(config.model), "dtype": config.resolved_dtype, "versions": versions(),
                "device": device_name(config.device), "threads": self.hello.threads, "contexts": self.suite.contexts(),
            }  # fmt: skip
            limit = int(config.context_cache * 1e9)
            self._contexts = ContextCache(cache_folder() / "contexts", limit, key, _say)
        return self._contexts

    def ask(self, operation: str, seconds: float | None = None, **arguments: Any) -> dict[str, Any]:
        """One request to the worker; timing has the device to itself. Compiling is no work for a GPU."""
        device = "cpu" if operation == "compile" else self.config.device
        with turns.turn(device, alone=operation == "speed"):
            return self.sandbox.request({"op": operation, **arguments}, seconds=seconds)

    def give_up(self) -> None:
        """Ends a worker that cannot be believed any more; the next request has another."""
        self.sandbox.stop()
        self.opened = False

    def close(self) -> None:
        """Ends the worker and removes its scratch folder."""
        self.sandbox.close()
        if self._contexts is not None:
            self._contexts.close()
        self.opened = False

    def tasks(self) -> list[str]:
        """The tasks that are judged: those on which dense attention scores the configured floor at least.

        What it seldom solves says nothing about a selection."""
        return [name for name, score in self.scores().items() if 0 < score >= self.config.dense_floor]

    def scores(self) -> dict[str, float]:
        """Score of dense attention by task, over all lengths."""
        found: dict[str, list[float]] = {}
        for row, (i, _) in enumerate(self.suite.forks):
            found.setdefault(self.suite.samples[i].task, []).append(self.dense[row])
        return {name: sum(scores) / len(scores) for name, scores in found.items()}


def _say(line: str) -> None:
    print(f"vortex: {line}", file=sys.stderr)
