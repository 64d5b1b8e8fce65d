"""The server that forks for every request: answers, limits, and what is left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pids import gone

from vortexlab.kernels.gpu.forks import ForkLost, Server, in_forks

#: What the server of these tests does with a request.
SERVICE = """
import os, signal, sys, time
from vortexlab.kernels.gpu.forks import in_forks, serve

count = 0

def work(request):
    global count
    count += 1
    print("chatter of a compiler")
    if request["do"] == "count":
        return {"count": count, "pid": os.getpid(), "server": os.getppid(), "variable": os.environ.get("VARIABLE")}
    if request["do"] == "fail":
        raise ValueError("no such thing")
    if request["do"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if request["do"] == "kill server":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    if request["do"] == "fill":
        return len(bytearray(request["bytes"]))
    if request["do"] == "large":
        return "x" * request["bytes"]
    if request["do"] == "hang":
        def sleep(item):
            with open(request["file"], "a") as file:
                file.write(f"{os.getpid()}\\n")
            time.sleep(600)
        in_forks(sleep, [0, 1], 2)

serve(work)
"""
SECONDS, MEMORY_MB = 30.0, 4096


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "service_of_tests.py").write_text(SERVICE)
    found = Server("service_of_tests")
    yield found
    found.stop()


def ask(server: Server, tmp_path: Path, do: str, seconds: float = SECONDS, **more: Any) -> Any:
    variable = {"VARIABLE": more.pop("variable")} if "variable" in more else {}
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, **variable}
    return server.ask({"do": do, **more}, environment, seconds, MEMORY_MB)


def test_every_request_has_a_fork_and_leaves_nothing_to_the_next(server: Server, tmp_path: Path) -> None:
    first, second = (ask(server, tmp_path, "count") for _ in range(2))
    assert first["count"] == second["count"] == 1
    assert first["server"] == second["server"] and first["pid"] != second["pid"]
    assert gone([first["pid"], second["pid"]])


def test_an_answer_may_be_larger_than_a_pipe(server: Server, tmp_path: Path) -> None:
    assert ask(server, tmp_path, "large", bytes=1 << 20) == "x" * (1 << 20)


@pytest.mark.parametrize(
    ("do", "status", "words"), [("fail", 1, "ValueError: no such thing"), ("kill", -signal.SIGKILL, "no message")]
)
def test_a_fork_that_fails_does_not_take_the_server_along(
    server: Server, tmp_path: Path, do: str, status: int, words: str
) -> None:
    before = ask(server, tmp_path, "count")["server"]
    with pytest.raises(ForkLost) as lost:
        ask(server, tmp_path, do)
    assert lost.value.status == status
    assert lost.value.words == words
    assert ask(server, tmp_path, "count")["server"] == before


def test_memory_is_limited_for_each_request(server: Server, tmp_path: Path) -> None:
    assert ask(server, tmp_path, "fill", bytes=1 << 20) == 1 << 20
    with pytest.raises(ForkLost) as lost:
        ask(server, tmp_path, "fill", bytes=2 * MEMORY_MB << 20)
    assert lost.value.words.startswith("MemoryError")


def test_out_of_time_all_that_was_started_ends_and_the_next_request_is_answered(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "pids"
    with pytest.raises(ForkLost) as lost:
        ask(server, tmp_path, "hang", seconds=2.0, file=str(file))
    assert lost.value.status is None
    pids = [int(line) for line in file.read_text().splitlines()]
    assert len(pids) == 2
    assert gone(pids)
    assert ask(server, tmp_path, "count")["count"] == 1


def test_a_lost_server_is_started_again(server: Server, tmp_path: Path) -> None:
    before = ask(server, tmp_path, "count")["server"]
    with pytest.raises(ForkLost) as lost:
        ask(server, tmp_path, "kill server")
    assert lost.value.status == -signal.SIGKILL
    assert ask(server, tmp_path, "count")["server"] != before


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    missing = Server("no_such_module")
    with pytest.raises(ForkLost, match="no_such_module"):
        ask(missing, tmp_path, "count")


def test_another_environment_gets_another_server(server: Server, tmp_path: Path) -> None:
    first, second = (ask(server, tmp_path, "count", variable=value) for value in ("one", "two"))
    assert (first["variable"], second["variable"]) == ("one", "two")
    assert first["server"] != second["server"] and gone([first["server"]])


def test_items_are_worked_on_in_forks_and_come_back_in_order() -> None:
    found = in_forks(lambda item: [item, os.getpid()], list(range(7)), 3)
    assert [item for item, _ in found] == list(range(7))
    assert len({pid for _, pid in found} | {os.getpid()}) == 8


def test_a_lost_item_ends_the_others() -> None:
    def work(item: int) -> int:
        if item == 0:
            os._exit(3)
        time.sleep(600)
        return item

    with pytest.raises(ForkLost) as lost:
        in_forks(work, [0, 1, 2], 3)
    assert lost.value.status == 3
