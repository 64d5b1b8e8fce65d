"""Campaigns against a server that does everything wrong: no budget is passed, by the server's own books.

It counts what it pleases, also what could well be true: what a fair tokenizer would count of texts for which it bills
several times as much.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.campaign_fakes import FakeEvaluator
from tests.test_llm_proposer import PROGRAM, reply
from vortexlab.agent.campaign import Campaign
from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.proposers.models import LLMConfig, ModelConfig
from vortexlab.agent.run import Run

FAULTS = ("429", "429 after", "500", "stall", "truncated", "reset", "usage", "fewer", "10 MB", "prose", "good", "good")
USAGES: list[Any] = [
    {"prompt_tokens": 1, "completion_tokens": 1}, {"prompt_tokens": -5, "completion_tokens": -5}, None, {},
    {"prompt_tokens": 10**15, "completion_tokens": 10**15}, {"prompt_tokens": "many", "completion_tokens": None},
]  # fmt: skip
KEY = "sk-secret-1234567890"


class Books:
    """What the server was asked, and what it bills: up to a token for each byte, and up to `max_tokens` written."""

    def __init__(self, seed: int):
        self.rng, self.requests, self.tokens, self.money = random.Random(seed), 0, 0, 0.0
        self.lock = threading.Lock()

    def bill(self, body: dict[str, Any]) -> dict[str, int]:
        read = sum(len(item["content"].encode()) for item in body.get("messages") or body["input"])
        read = self.rng.randint(read // 5, read)
        written = self.rng.randint(0, body.get("max_tokens") or body["max_output_tokens"])
        self.tokens += read + written
        self.money += (read * 1.0 + written * 4.0) / 1e6
        return {"prompt_tokens": read, "completion_tokens": written}


@contextmanager
def hostile(seed: int) -> Iterator[tuple[str, Books]]:
    books = Books(seed)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with books.lock:
                books.requests += 1
                fault = books.rng.choice(FAULTS)
                number = books.rng.randrange(4, 500)
                usage: Any = {} if fault.startswith("429") else books.bill(body)
            if fault == "stall":
                time.sleep(0.6)
                return
            if fault == "reset":
                self.connection.close()
                return
            if fault[0] in "45":
                self._send(int(fault[:3]), f'{{"error": {{"message": "no, {KEY}"}}}}', fault == "429 after")
                return
            text = reply(PROGRAM.replace("last(4)", f"last({number})"))
            text = {"prose": "no program", "10 MB": "word " * 2_000_000}.get(fault, text)
            if fault == "usage":
                usage = USAGES[number % len(USAGES)]
            elif fault == "fewer":
                usage = {"prompt_tokens": usage["prompt_tokens"] // 4, "completion_tokens": len(text) // 4}
            if "input" in body:
                if usage:
                    usage = dict(zip(("input_tokens", "output_tokens"), usage.values(), strict=False))
                content = [{"type": "output_text", "text": text}]
                answer = json.dumps({"output": [{"type": "message", "content": content}], "usage": usage})
            else:
                choice = {"message": {"content": text}, "finish_reason": "stop"}
                answer = json.dumps({"choices": [choice], "usage": usage})
            self._send(200, answer[: len(answer) // 2] if fault == "truncated" else answer)

        def _send(self, status: int, text: str, after: bool = False) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            if after:
                self.send_header("Retry-After", "0.01")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            return

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{httpd.server_address[1]}/v1", books
    finally:
        httpd.shutdown()
        httpd.server_close()


def check(seed: int, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    rng = random.Random(seed)
    tokens, money, calls = rng.randrange(30_000, 300_000), rng.uniform(0.03, 0.3), rng.randrange(3, 12)
    with hostile(seed) as (url, books):
        models = tuple(
            ModelConfig(name, base_url=url, api=api, input_price=1.0, output_price=4.0, max_tokens=500)
            for name, api in (("a", "chat"), ("b", "responses"))
        )
        limits = LLMConfig(models, calls=calls, tokens=tokens, money=money, deadline=0.4, repairs=1)
        config = CampaignConfig(
            name=f"hostile{seed}", runs=str(runs), evaluations=8, proposers=("llm",), seeds=("quest", "dense"),
            budget_points=(), structure_share=1.0, mirror=False, llm=limits,
        )  # fmt: skip
        summary = Campaign(config, evaluator=FakeEvaluator()).run()
    run = Run.open(config.name, runs)
    state, exchanges = run.progress(), [event.data for event in run.events("exchange")]
    assert books.requests <= calls and books.tokens <= tokens and books.money <= money
    assert books.tokens <= state.tokens <= tokens and state.calls == len(exchanges) <= calls
    assert books.money <= state.money <= money
    assert len(exchanges) == sum(1 for _ in run.events("reserved"))
    assert summary.reason == run.status()["reason"] == "the budget is spent: 8 evaluations"
    assert all(failure["reason"] for failure in run.history.failures) and all(run.history.stopped().values())
    assert [trial.slot for trial in run.trials] == list(range(len(run.trials)))
    assert KEY not in json.dumps([dict(event.data) for event in run.events()])


@pytest.mark.parametrize("seed", range(5))
def test_no_budget_is_passed(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(seed, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5, 50))
def test_no_budget_is_ever_passed(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(seed, tmp_path, monkeypatch)
