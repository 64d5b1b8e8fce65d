"""One request to one language model, through the `openai` client or from a recording.

An endpoint sends exactly one HTTP request a call and never repeats it by itself: retries are the proposer's, which
reserves and records each of them. Whatever goes wrong becomes an `EndpointError` that says what kind of trouble it is
and what may have been charged; no key ever stands in one.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import openai

from vortexlab.agent import prompt
from vortexlab.agent.budget import Cost
from vortexlab.agent.proposers.models import ModelConfig
from vortexlab.agent.proposers.replies import REPLY_LIMIT
from vortexlab.dsl.errors import VortexError, one_line

#: Bytes of an answer that are read at most.
_BODY_LIMIT = 16 << 20
#: What a request can do without, by the names that endpoints use for it when they refuse.
_OPTIONAL = {
    "response_format": r"response_format|text\.format|json_schema|structured output",
    "max_tokens": r"max_tokens",
    "temperature": r"temperature",
    "seed": r"\bseed\b",
}
#: The form of a reply, for endpoints that hold a model to one.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "hypothesis": {"type": "string"},
        "predicted_effect": {
            "type": "object",
            "properties": {"speedup": {"type": "number"}, "accuracy": {"type": "number"}},
            "required": ["speedup", "accuracy"],
            "additionalProperties": False,
        },
        "program": {"type": "string"},
    },
    "required": ["hypothesis", "predicted_effect", "program"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Call:
    """One request: what is asked (`model`, `messages`, `max_tokens`, `temperature`, `seed`), its `key` (a hash of
    that), its place in the campaign, what the endpoint is known to refuse, and the seconds it has."""

    request: Mapping[str, Any]
    key: str
    slot: int
    attempt: int
    dropped: frozenset[str]
    seconds: float


@dataclass(frozen=True)
class Completion:
    """What came back. `usage` is (read, written) tokens as the endpoint counted them, unchecked, None where it sent
    none; `booked` is what a recording says the call was charged."""

    text: str
    usage: Any = None
    finish: str = ""
    seconds: float = 0.0
    booked: Cost | None = None


class EndpointError(VortexError):
    """A call that brought no answer.

    `kind`: ``parameter`` (the endpoint refuses `drop`, ask without), ``busy`` and ``broken`` (ask again, `retry_after`
    seconds later where it says so), ``timeout``, ``refused`` (this request), ``denied`` (every request: the key, the
    address, the model or the account is wrong). `charged` says whether the endpoint may have charged for it.
    """

    def __init__(
        self, message: str, kind: str, *, charged: bool, drop: str = "", retry_after: float | None = None,
        seconds: float = 0.0, booked: Cost | None = None,
    ):  # fmt: skip
        super().__init__(message)
        self.kind, self.charged, self.drop, self.retry_after = kind, charged, drop, retry_after
        self.seconds, self.booked = seconds, booked


class Endpoint(Protocol):
    """Something that completes a chat. Raises `EndpointError` when it cannot."""

    label: str

    def complete(self, call: Call) -> Completion: ...

    def paid(self, call: Call) -> bool:
        """Whether the answer stands in this campaign's own record already, paid for before a kill."""
        ...

    def wait(self, seconds: float) -> None:
        """Lets time pass before a retry."""
        ...


def body(config: ModelConfig, request: Mapping[str, Any], dropped: frozenset[str]) -> dict[str, Any]:
    """The parameters of the client's `create` for one request, in the dialect that the endpoint speaks."""
    sent: dict[str, Any] = {"model": request["model"]}
    if request.get("temperature") is not None and "temperature" not in dropped:
        sent["temperature"] = request["temperature"]
    if config.api == "responses":  # it knows no seed
        sent |= {"input": list(request["messages"]), "max_output_tokens": request["max_tokens"], "store": False}
        if "response_format" not in dropped:
            sent["text"] = {"format": {"type": "json_schema", "name": "proposal", "schema": SCHEMA, "strict": True}}
        return sent
    sent["messages"] = list(request["messages"])
    # Reasoning models refuse the first name; older servers ignore the second, and would then write without end.
    sent["max_completion_tokens" if "max_tokens" in dropped else "max_tokens"] = request["max_tokens"]
    if "seed" not in dropped:
        sent["seed"] = request["seed"]
    if "response_format" not in dropped:
        form = {"name": "proposal", "schema": SCHEMA, "strict": True}
        sent["response_format"] = {"type": "json_schema", "json_schema": form}
    return sent


class OpenAIEndpoint:
    """A server that speaks the OpenAI protocol. Raises `VortexError` where the key is missing or cannot be one."""

    label = "live"

    def __init__(self, config: ModelConfig):
        key = os.environ.get(config.key_variable, "").strip()
        if not key:
            if config.base_url is None:
                raise VortexError(
                    f"no key for the language model: set {config.key_variable}, or give --base-url of a local endpoint"
                )
            key = "none"
        if not key.isascii() or not key.isprintable():
            raise VortexError(f"{config.key_variable} holds no key: it has characters that no key has; set it again")
        self.config, self._key = config, key

    def complete(self, call: Call) -> Completion:
        began = time.monotonic()
        try:
            payload = self._within(call)
        except EndpointError as error:
            error.seconds = time.monotonic() - began
            raise
        try:
            text, usage, finish = _read(self.config.api, json.loads(payload))
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError):
            raise self._error(
                "answered with something that is no answer of the protocol (cut off, or --base-url is not its address: "
                "many end in /v1)", "broken", charged=True, seconds=time.monotonic() - began,
            ) from None  # fmt: skip
        text = self._scrubbed(text.encode("utf-8", "replace").decode())
        return Completion(text, usage, finish, time.monotonic() - began)

    def paid(self, call: Call) -> bool:
        return False

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def _within(self, call: Call) -> bytes:
        """The body of the answer. In a thread of its own, because resolving a name cannot be interrupted, and because
        a notebook runs an event loop already."""
        answers: queue.SimpleQueue[bytes | EndpointError] = queue.SimpleQueue()

        def work() -> None:
            try:
                answers.put(asyncio.run(self._send(call)))
            except EndpointError as error:
                answers.put(error)
            except BaseException as error:  # a bad address, a broken proxy: never the key in a traceback
                answers.put(self._error(f"cannot be asked: {error}", "refused", charged=True))

        threading.Thread(target=work, daemon=True).start()
        try:
            answer = answers.get(timeout=call.seconds + 1.0)
        except queue.Empty:
            answer = self._late(call)
        if isinstance(answer, EndpointError):
            raise answer
        return answer

    async def _send(self, call: Call) -> bytes:
        sent = body(self.config, call.request, call.dropped)
        try:
            async with (
                asyncio.timeout(call.seconds),
                openai.AsyncOpenAI(api_key=self._key, base_url=self.config.base_url, max_retries=0) as client,
            ):
                ask = client.responses if self.config.api == "responses" else client.chat.completions
                async with ask.with_streaming_response.create(**sent) as response:
                    read = bytearray()
                    async for chunk in response.iter_bytes():
                        read += chunk
                        if len(read) > _BODY_LIMIT:
                            much = f"answered with more than {_BODY_LIMIT >> 20} MiB"
                            raise self._error(much, "refused", charged=True)
                    return bytes(read)
        except (TimeoutError, openai.APITimeoutError):
            raise self._late(call) from None
        except openai.APIStatusError as error:
            raise self._status(error, call) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            reached = "Connect" not in type(cause).__name__
            what = "broke the connection off" if reached else "cannot be reached; is --base-url right, the server up?"
            raise self._error(f"{what} ({type(cause).__name__}: {cause})", "broken", charged=reached) from None
        except (openai.OpenAIError, OSError) as error:
            raise self._error(f"failed: {error}", "broken", charged=True) from None
        except Exception as error:
            # The transport's own errors reach us raw while a body is read.
            what = f"broke the answer off ({type(error).__name__}: {error})"
            raise self._error(what, "broken", charged=True) from None

    def _late(self, call: Call) -> EndpointError:
        return self._error(f"did not answer within {call.seconds:.1f} s", "timeout", charged=True)

    def _status(self, error: openai.APIStatusError, call: Call) -> EndpointError:
        status, text = error.status_code, str(error.message)
        where = self.config.base_url or "the endpoint"
        model = repr(self.config.model)
        if status in (401, 403):
            return self._error(
                f"refused the key ({status}): set {self.config.key_variable} to a key of {where} that may use {model}: "
                f"{text}", "denied", charged=False,
            )  # fmt: skip
        if status == 404:
            return self._error(
                f"knows no model {model}, or --base-url lacks its path (many end in /v1): {text}", "denied",
                charged=False,
            )  # fmt: skip
        if status == 402 or "insufficient_quota" in text or getattr(error, "code", None) == "insufficient_quota":
            return self._error(f"says that the account has no money left: {text}", "denied", charged=False)
        if status in (408, 409, 425, 429) or status >= 500:
            return self._error(
                f"answered with status {status}: {text}", "busy", charged=status >= 500 or status == 408,
                retry_after=_retry_after(error),
            )  # fmt: skip
        if status in (400, 422):
            drop = _refused_parameter(error, body(self.config, call.request, call.dropped), call.dropped)
            if drop:
                return self._error(f"refuses {drop}: {text}", "parameter", charged=False, drop=drop)
        return self._error(f"refused the request with status {status}: {text}", "refused", charged=False)

    def _error(self, what: str, kind: str, **details: Any) -> EndpointError:
        return EndpointError(one_line(self._scrubbed(f"the endpoint of {self.config.model} {what}")), kind, **details)

    def _scrubbed(self, text: str) -> str:
        return text if self._key == "none" else text.replace(self._key, "[key]")


class ReplayEndpoint:
    """Answers from a recording, in the recorded order for equal requests; never touches a network and never waits.

    What was asked with the texts of another release (another version of the prompt) is found by its place in the
    campaign instead.
    """

    label = "replay"

    def __init__(self, exchanges: Sequence[Mapping[str, Any]]):
        self._answers: dict[Any, list[Mapping[str, Any]]] = {}
        now = prompt.version()
        for item in exchanges:
            same = item.get("prompt_version", now) == now
            place = item["key"] if same else _place(item["request"]["model"], item["slot"], item["attempt"])
            self._answers.setdefault(place, []).append(item)

    def holds(self, call: Call) -> bool:
        return bool(self._waiting(call))

    def _waiting(self, call: Call) -> list[Mapping[str, Any]]:
        place = _place(call.request["model"], call.slot, call.attempt)
        return self._answers.get(call.key) or self._answers.get(place) or []

    def skip(self, call: Call) -> None:
        del self._waiting(call)[:1]

    def complete(self, call: Call) -> Completion:
        waiting = self._waiting(call)
        if not waiting:
            raise EndpointError(
                "the recording holds no answer to this request; the campaign is not the recorded one", "refused",
                charged=False,
            )  # fmt: skip
        item = waiting.pop(0)
        tokens, seconds = int(item.get("tokens", 0)), float(item.get("seconds", 0.0))
        written = int(item.get("written", 0))
        booked = Cost(tokens - written, written, float(item.get("money", 0.0)), seconds)
        if item.get("error"):
            raise EndpointError(
                item["error"], item.get("kind", "refused"), charged=True, drop=item.get("drop", ""),
                retry_after=item.get("retry_after"), seconds=seconds, booked=booked,
            )  # fmt: skip
        usage = item.get("usage")
        usage = tuple(usage) if isinstance(usage, list) else usage
        return Completion(item["text"], usage, item.get("finish", ""), seconds, booked)

    def paid(self, call: Call) -> bool:
        return False

    def wait(self, seconds: float) -> None:
        return


@dataclass
class ResumedEndpoint:
    """Answers what was answered before a kill from the record, everything else from the endpoint."""

    recorded: ReplayEndpoint
    endpoint: Endpoint
    label: str = field(init=False)

    def __post_init__(self) -> None:
        self.label = self.endpoint.label

    def complete(self, call: Call) -> Completion:
        if not self.paid(call):
            return self.endpoint.complete(call)
        if isinstance(self.endpoint, ReplayEndpoint):
            self.endpoint.skip(call)  # its recording has this answer too
        return self.recorded.complete(call)

    def paid(self, call: Call) -> bool:
        return self.recorded.holds(call)

    def wait(self, seconds: float) -> None:
        self.endpoint.wait(seconds)


def _place(model: str, slot: int, attempt: int) -> tuple[str, int, int]:
    return model, slot, attempt


def _refused_parameter(error: openai.APIStatusError, sent: Mapping[str, Any], dropped: frozenset[str]) -> str:
    """Which optional parameter a 400 is about; empty where it is about something else.

    A refusal that names none is put down to the form of the reply, the parameter that most servers lack, once.
    """
    left = [name for name in _OPTIONAL if name not in dropped]
    said = f"{getattr(error, 'param', None) or ''} {error.message}"
    for name in left:
        here = name in sent or (name == "response_format" and "text" in sent)
        if here and re.search(_OPTIONAL[name], said, re.IGNORECASE):
            return name
    return "response_format" if "response_format" in left else ""


def _retry_after(error: openai.APIStatusError) -> float | None:
    """Seconds that the endpoint asks us to wait; a date, or nonsense, counts as nothing said."""
    for header, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(error.response.headers.get(header, "")) * unit
        except ValueError:
            continue
        if 0 <= seconds < 1e6:
            return seconds
    return None


def _read(api: str, data: Any) -> tuple[str, Any, str]:
    """(text, usage, why it ended) of an answer; raises where it is none of the protocol's."""
    if api == "responses":
        parts = []
        for item in data["output"]:
            if item.get("type") == "function_call":
                parts.append(str(item.get("arguments") or ""))
            for piece in item.get("content") or () if item.get("type") == "message" else ():
                parts.append(str(piece.get("text") or piece.get("refusal") or ""))
        finish = "length" if (data.get("incomplete_details") or {}).get("reason") == "max_output_tokens" else ""
        return "".join(parts), _usage(data, "input_tokens", "output_tokens"), finish
    choice = data["choices"][0]
    message = choice["message"]
    text = message.get("content")
    if isinstance(text, list):  # parts
        text = "".join(str(piece.get("text") or "") for piece in text if isinstance(piece, dict))
    if not text:
        calls = message.get("tool_calls") or ()
        text = "".join(str(call["function"].get("arguments") or "") for call in calls) or message.get("refusal") or ""
    return str(text), _usage(data, "prompt_tokens", "completion_tokens"), str(choice.get("finish_reason") or "")


def _usage(data: Any, read: str, written: str) -> Any:
    usage = data.get("usage")
    return (usage.get(read), usage.get(written)) if isinstance(usage, dict) else None


def clipped(text: str) -> str:
    """What of a reply is kept, recorded and read."""
    return text[:REPLY_LIMIT]
