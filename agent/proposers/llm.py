"""A language model as proposer, through any endpoint that speaks the OpenAI protocol.

One proposal is one chat: the request, and at most `repairs` rounds in which the errors of the reply go back. One
deadline stands around each call, retries of the client included; the budget is reserved before the call; every
exchange is recorded, and a recording replays the campaign without a network.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import openai

from vortexlab.agent import prompt
from vortexlab.agent.budget import Budget, BudgetExhausted
from vortexlab.agent.proposers.base import Member, Proposal, ProposerError, Record
from vortexlab.agent.proposers.replies import ReplyError, parse_reply
from vortexlab.dsl import parse
from vortexlab.dsl.errors import ProgramError, VortexError
from vortexlab.dsl.ir import digest

#: Failed calls in a row after which the endpoint counts as down for the rest of the campaign.
BREAKER = 3
_CHARACTERS_PER_TOKEN = 3


@dataclass(frozen=True)
class LLMConfig:
    """Which model to ask and what it may cost.

    `key_variable` names the environment variable with the key. `deadline` is in seconds and stands around one call
    with all its retries. `label` is shown beside every program of this source: ``authored`` where a person wrote the
    replies.
    """

    model: str
    base_url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    temperature: float = 0.8
    max_tokens: int = 3000
    calls: int = 400
    tokens: int = 4_000_000
    deadline: float = 180.0
    repairs: int = 2
    label: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Completion:
    text: str
    tokens: int


class Endpoint(Protocol):
    """Something that completes a chat. Raises `ProposerError` when it cannot."""

    label: str

    def complete(self, request: Mapping[str, Any]) -> Completion: ...


class OpenAIEndpoint:
    """The `openai` client under one deadline; its own retries (429, 5xx, lost connections) happen inside it."""

    label = "live"

    def __init__(self, config: LLMConfig):
        key = os.environ.get(config.key_variable)
        if not key:
            if config.base_url is None:
                raise VortexError(
                    f"no key for the language model: set {config.key_variable}, or give --base-url of a local endpoint"
                )
            key = "none"
        self.config, self._key = config, key

    def complete(self, request: Mapping[str, Any]) -> Completion:
        try:
            return asyncio.run(self._call(request))
        except TimeoutError:
            raise ProposerError(f"the model endpoint did not answer within {self.config.deadline:.0f} s") from None
        except openai.OpenAIError as error:
            raise ProposerError(f"the model endpoint failed: {_one_line(error)}") from None

    async def _call(self, request: Mapping[str, Any]) -> Completion:
        async with asyncio.timeout(self.config.deadline):
            async with openai.AsyncOpenAI(api_key=self._key, base_url=self.config.base_url, max_retries=4) as client:
                answer = await client.chat.completions.create(**request)
        text = answer.choices[0].message.content or "" if answer.choices else ""
        return Completion(text, answer.usage.total_tokens if answer.usage else _estimate(request, text))


class ReplayEndpoint:
    """Answers from a recording, in the recorded order for equal requests; never touches a network."""

    label = "replay"

    def __init__(self, exchanges: Sequence[Mapping[str, Any]]):
        self._answers: dict[str, list[Mapping[str, Any]]] = {}
        for item in exchanges:
            self._answers.setdefault(item["key"], []).append(item)

    def complete(self, request: Mapping[str, Any]) -> Completion:
        waiting = self._answers.get(digest(dict(request)))
        if not waiting:
            raise ProposerError("the recording holds no answer to this request; the campaign is not the recorded one")
        item = waiting.pop(0)
        if item.get("error"):
            raise ProposerError(item["error"])
        return Completion(item["text"], item["tokens"])


class LLMProposer:
    """Asks an endpoint for programs; `record` receives one JSON object per exchange."""

    def __init__(
        self,
        config: LLMConfig,
        task: str,
        record: Record,
        endpoint: Endpoint | None = None,
        spent: tuple[int, int] = (0, 0),
    ):
        self.config, self.task, self.record = config, task, record
        self.name = f"llm:{config.model}"
        self.operators = (self.name,)
        self.endpoint = endpoint or OpenAIEndpoint(config)
        self.budget = Budget(config.calls, config.tokens, *spent)
        self._failures = 0

    def propose(
        self, history: Sequence[Member], rng: random.Random, slot: int, operator: str | None = None
    ) -> Proposal | None:
        """Raises `ProposerError` when the endpoint fails, no repair yields a program, or the budget is spent."""
        if self._failures >= BREAKER:
            raise ProposerError(f"{self.name} failed {BREAKER} times in a row and is not asked again", permanent=True)
        chat = prompt.messages(history, rng, self.task)
        seed = rng.randrange(2**31)
        problem = ""
        for attempt in range(self.config.repairs + 1):
            text = self._complete(chat, seed, slot, attempt)
            try:
                reply = parse_reply(text)
                program = parse(reply.program)
                program.bind()
                return Proposal(
                    source=reply.program,
                    name=program.name,
                    proposer=self.name,
                    operator="llm" if attempt == 0 else f"llm-repair-{attempt}",
                    parents=tuple(m.id for m in history if m.on_frontier)[:3],
                    hypothesis=reply.hypothesis,
                    predicted_effect=reply.predicted_effect,
                    label=self.config.label,
                )
            except ProgramError as error:
                problem = "\n".join(map(str, error.diagnostics[:8]))
            except (ReplyError, VortexError) as error:
                problem = str(error)
            chat = [*chat, {"role": "assistant", "content": text[:8000]}, prompt.repair(problem)]
        raise ProposerError(f"no valid program after {self.config.repairs} repairs: {_one_line(problem)}")

    def _complete(self, chat: Sequence[Mapping[str, str]], seed: int, slot: int, attempt: int) -> str:
        request = {
            "model": self.config.model,
            "messages": list(chat),
            "temperature": self.config.temperature,
            "max_tokens": self.config.max_tokens,
            "seed": seed,
        }
        prompt_tokens = _estimate(request, "")
        try:
            self.budget.reserve(prompt_tokens + self.config.max_tokens)
        except BudgetExhausted as error:
            raise ProposerError(str(error), permanent=True) from None
        exchange: dict[str, Any] = {
            "key": digest(request), "slot": slot, "attempt": attempt, "label": self.endpoint.label,
            "prompt_version": prompt.version(), "request": request,
        }  # fmt: skip
        try:
            completion = self.endpoint.complete(request)
        except ProposerError as error:
            self._failures += 1
            self.budget.settle(prompt_tokens)
            self.record({**exchange, "error": str(error), "text": "", "tokens": prompt_tokens})
            raise
        self._failures = 0
        self.budget.settle(completion.tokens)
        self.record({**exchange, "error": "", "text": completion.text, "tokens": completion.tokens})
        return completion.text


def _estimate(request: Mapping[str, Any], text: str) -> int:
    characters = sum(len(message["content"]) for message in request["messages"]) + len(text)
    return characters // _CHARACTERS_PER_TOKEN + 16


def _one_line(error: object, limit: int = 300) -> str:
    line = " ".join(str(error).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
