"""A local server that speaks the OpenAI protocol, both APIs, and answers from a script, for tests.

A script is a list of steps, one per request: a text to answer with, an int (an HTTP error status), or `HANG`.
When the script ends its last text is repeated. Requests that the real endpoint would refuse are refused: another path,
a wrong key, an unknown model, a parameter that the API does not have.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HANG = "<hang>"
_PARAMETERS = {
    "/v1/chat/completions": {
        "model", "messages", "temperature", "seed", "max_tokens", "max_completion_tokens", "response_format",
    },
    "/v1/responses": {"model", "input", "temperature", "max_output_tokens", "text", "store"},
}  # fmt: skip


@dataclass
class Server:
    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    billed: list[int] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serving(
    script: Sequence[str | int], *, key: str = "", models: Sequence[str] = (), usage: bool = True, port: int = 0
) -> Iterator[Server]:
    """`key` and `models` are the only ones that the server takes, where given; without `usage` it counts no tokens;
    `port` 0 is any that is free."""
    steps = list(script)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.requests.append(body)
            server.paths.append(self.path)
            refusal = self._refusal(body)
            if refusal is not None:
                status, message = refusal
                self._send(status, {"error": {"message": message}})
                return
            step = steps.pop(0) if len(steps) > 1 else steps[0]
            if step == HANG:
                server.release.wait(30)
                return
            if isinstance(step, int):
                self._send(step, {"error": {"message": f"status {step}"}})
                return
            self._send(200, self._answer(body, str(step)))

        def _refusal(self, body: dict[str, Any]) -> tuple[int, str] | None:
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if self.path not in _PARAMETERS:
                return 404, f"Invalid URL (POST {self.path})"
            if key and given != key:
                return 401, f"Incorrect API key provided: {given}."
            if models and body["model"] not in models:
                return 404, f"The model `{body['model']}` does not exist"
            for name in body.keys() - _PARAMETERS[self.path]:
                return 400, f"Unknown parameter: '{name}'."
            return None

        def _answer(self, body: dict[str, Any], text: str) -> dict[str, Any]:
            messages = body.get("messages") or body["input"]
            read = sum(len(message["content"].encode()) for message in messages) // 3
            written = len(text) // 2
            server.billed += [read, written]
            if "input" in body:
                content = [{"type": "output_text", "text": text, "annotations": []}]
                counts = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
                answer: dict[str, Any] = {
                    "id": "x", "object": "response", "created_at": 0, "model": body["model"], "status": "completed",
                    "output": [
                        {"type": "reasoning", "id": "r", "summary": []},
                        {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": content},
                    ],
                }  # fmt: skip
            else:
                message = {"role": "assistant", "content": text}
                counts = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
                answer = {
                    "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
                    "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                }  # fmt: skip
            return {**answer, "usage": counts} if usage else answer

        def _send(self, status: int, data: dict[str, Any]) -> None:
            payload = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            if status == 429:
                self.send_header("retry-after-ms", "20")
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: object) -> None:
            return

    httpd = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server = Server(f"http://127.0.0.1:{httpd.server_address[1]}/v1")
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        httpd.shutdown()
        httpd.server_close()
