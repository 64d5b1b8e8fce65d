"""A language model as proposer, through any endpoint that speaks the OpenAI protocol.

One proposal is one chat: the request, and at most `repairs` rounds in which the errors of the last reply go back. One
deadline stands around all that a slot asks; the budget, which all models share, is reserved before every request and
every request is recorded, failed ones too, so that a recording replays the campaign without a network.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from vortexlab.agent import prompt
from vortexlab.agent.budget import Budget, BudgetExhausted, Cost, believed, most
from vortexlab.agent.proposers.base import Member, Proposal, ProposerError, Record
from vortexlab.agent.proposers.endpoint import (
    Call,
    Completion,
    Endpoint,
    EndpointError,
    OpenAIEndpoint,
    body,
    clipped,
)
from vortexlab.agent.proposers.models import LLMConfig, ModelConfig
from vortexlab.agent.proposers.replies import ReplyError, parse_reply
from vortexlab.dsl.errors import ProgramError, VortexError, one_line
from vortexlab.dsl.ir import digest
from vortexlab.search_spaces.parsed import parsed

#: Requests for one reply, while the endpoint is busy or breaks off, and the first pause between them in seconds.
TRIES, _PAUSE = 5, 0.5


class LLMProposer:
    """Asks one model for programs; `record` receives one JSON object per request, as soon as it ends.

    `budget` is shared with the other models of the campaign. `reserve` receives what a request may cost before it is
    sent, so that a request that a kill cuts off counts. `dropped` are parameters that the endpoint is known to refuse.
    """

    def __init__(
        self,
        model: ModelConfig,
        config: LLMConfig,
        briefing: prompt.Briefing,
        record: Record,
        budget: Budget,
        endpoint: Endpoint | None = None,
        dropped: frozenset[str] = frozenset(),
        reserve: Record | None = None,
    ):
        self.model, self.config, self.briefing = model, config, briefing
        self.name = model.name
        self.operators = (self.name,)
        self.budget = budget
        self._endpoint = endpoint or OpenAIEndpoint(model)
        self._record, self._reserve, self._dropped = record, reserve, dropped

    def propose(
        self, history: Sequence[Member], rng: random.Random, slot: int, operator: str | None = None
    ) -> Proposal | None:
        """Raises `ProposerError` when the endpoint fails, no repair yields a program, or the budget is spent."""
        shown = prompt.compose(history, rng, self.briefing)
        chat, seed = shown.messages, rng.randrange(2**31)
        slot_seconds = _Deadline(self.config.deadline, self.budget)
        problem = ""
        for attempt in range(self.config.repairs + 1):
            completion = self._reply(chat, seed, slot, attempt, slot_seconds)
            try:
                reply = parse_reply(completion.text, cut_off=completion.finish == "length")
                program = parsed(reply.program)
                program.bind()
                return Proposal(
                    source=reply.program,
                    name=program.name,
                    proposer=self.name,
                    operator="llm" if attempt == 0 else f"llm-repair-{attempt}",
                    parents=shown.parents,
                    hypothesis=reply.hypothesis,
                    predicted_effect=reply.predicted_effect,
                    label=self.model.label,
                )
            except ProgramError as error:
                problem = "\n".join(map(str, error.diagnostics[:8]))
            except (ReplyError, VortexError) as error:
                problem = str(error)
            chat = [*shown.messages, *prompt.repair(completion.text, problem)]
        raise ProposerError(f"no valid program after {self.config.repairs} repairs: {one_line(problem)}")

    def _reply(
        self, chat: Sequence[Mapping[str, str]], seed: int, slot: int, attempt: int, deadline: _Deadline
    ) -> Completion:
        """One reply, asked for again while the endpoint is busy, breaks off or refuses a parameter."""
        request = {
            "model": self.model.model,
            "messages": list(chat),
            "temperature": self.model.temperature,
            "max_tokens": self.model.max_tokens,
            "seed": seed,
        }
        failed, waited = 0, 0.0
        while True:
            try:
                return self._request(request, slot, attempt, failed, waited, deadline)
            except EndpointError as error:
                if error.kind == "parameter":
                    self._dropped |= {error.drop}
                    waited = 0.0
                    continue
                failed += 1
                waited = _PAUSE * 2 ** (failed - 1) if error.retry_after is None else error.retry_after
                last = error.kind not in ("busy", "broken") or failed >= TRIES
                if last or waited >= deadline.left:
                    raise ProposerError(str(error), permanent=error.kind == "denied") from None
            self._endpoint.wait(waited)
            deadline.pass_by(waited)

    def _request(
        self, request: Mapping[str, Any], slot: int, attempt: int, number: int, waited: float, deadline: _Deadline
    ) -> Completion:
        sent = body(self.model, request, self._dropped)
        size = len(json.dumps(sent, ensure_ascii=False).encode("utf-8", "replace"))
        ceiling = most(size, self.model.max_tokens, self.model.price)
        if deadline.left <= 0:
            raise ProposerError(f"{self.name} had no valid program within the {self.config.deadline:g} s of a slot")
        call = Call(request, digest(dict(request)), slot, attempt, self._dropped, deadline.left)
        paid = self._endpoint.paid(call)
        if not paid:
            try:
                self.budget.reserve(ceiling)
            except BudgetExhausted as error:
                raise ProposerError(str(error), permanent=True) from None
            if self._reserve is not None:
                self._reserve({
                    "key": call.key, "slot": slot, "model": self.model.model, "tokens": ceiling.tokens,
                    "money": ceiling.money,
                })  # fmt: skip
        record: dict[str, Any] = {
            "key": call.key, "slot": slot, "attempt": attempt, "try": number, "model": self.model.model,
            "label": self._endpoint.label, "prompt_version": prompt.version(), "request": sent, "waited": waited,
            "temperature": sent.get("temperature"), "seed": sent.get("seed"),
        }  # fmt: skip
        try:
            completion = self._endpoint.complete(call)
        except EndpointError as error:
            cost = error.booked or (ceiling if error.charged else Cost())
            deadline.used += error.seconds
            if not paid:
                self._settle(cost, error.seconds, {
                    **record, "text": "", "error": str(error), "kind": error.kind, "drop": error.drop,
                    "retry_after": error.retry_after,
                })  # fmt: skip
            raise
        cost, trusted = self._cost(completion, ceiling, sent)
        text = clipped(completion.text)
        deadline.used += completion.seconds
        if not paid:
            self._settle(cost, completion.seconds, {
                **record, "text": text, "error": "", "finish": completion.finish, "usage": completion.usage,
                "trusted": trusted,
            })  # fmt: skip
        return Completion(text, completion.usage, completion.finish, completion.seconds)

    def _cost(self, completion: Completion, ceiling: Cost, sent: Mapping[str, Any]) -> tuple[Cost, bool]:
        """What an answer is charged, and whether that is as it should be: not where trusted counts are unbelievable."""
        if completion.booked is not None:
            return completion.booked, True
        if not self.model.trust_usage:
            return ceiling, True
        read_bytes = sum(len(message["content"].encode()) for message in sent.get("messages") or sent["input"])
        counted = believed(completion.usage, read_bytes, len(completion.text.encode()))
        if counted is None:
            return ceiling, False
        read, written = (min(counted[0], ceiling.read), min(counted[1], ceiling.written))
        return Cost(read, written, self.model.price.of(read, written)), True

    def _settle(self, cost: Cost, seconds: float, record: dict[str, Any]) -> None:
        booked = self.budget.settle(Cost(cost.read, cost.written, cost.money, seconds))
        self._record({
            **record, "tokens": booked.tokens, "written": booked.written, "money": booked.money, "seconds": seconds,
        })  # fmt: skip


class _Deadline:
    """The seconds of one slot, of which calls and pauses take theirs, and what the time budget leaves of them.

    It counts what was recorded rather than reading a clock, so a replay, which waits for nothing, decides the same.
    """

    def __init__(self, seconds: float, budget: Budget):
        self._seconds, self._budget, self.used = seconds, budget, 0.0

    @property
    def left(self) -> float:
        return min(self._seconds - self.used, self._budget.seconds_left)

    def pass_by(self, seconds: float) -> None:
        self.used += seconds
        self._budget.wait(seconds)
