"""A local server that speaks the OpenAI chat protocol and answers from a script, for tests.

A script is a list of steps, one per request: a text to answer with, an int (an HTTP error status), or `HANG`.
When the script ends its last text is repeated.
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


@dataclass
class Server:
    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    billed: list[int] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serving(script: Sequence[str | int]) -> Iterator[Server]:
    steps = list(script)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.requests.append(body)
            step = steps.pop(0) if len(steps) > 1 else steps[0]
            if step == HANG:
                server.release.wait(30)
                return
            if isinstance(step, int):
                self._send(step, {"error": {"message": f"status {step}"}})
                return
            read = sum(len(message["content"].encode()) for message in body["messages"]) // 3
            usage = {"prompt_tokens": read, "completion_tokens": len(step) // 2}
            server.billed += usage.values()
            self._send(200, {
                "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": step}}],
                "usage": {**usage, "total_tokens": sum(usage.values())},
            })  # fmt: skip

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

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{httpd.server_address[1]}/v1")
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        httpd.shutdown()
        httpd.server_close()
