"""The store: append-only, one writer, and nothing lost whatever happens to the process or the disk."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from campaign_fakes import in_child

from vortexlab.agent.store import FILE, Store
from vortexlab.dsl.errors import VortexError

STARTED = {"config": {"seed": 0}}


def test_events_come_back_in_order_with_their_data(tmp_path: Path) -> None:
    with Store.create(tmp_path / "run", STARTED) as store:
        store.append("proposal", {"arm": "seed"}, slot=0)
        store.append("note", {"text": "half\nway", "number": float("inf")})
    with Store.read(tmp_path / "run") as store:
        assert [(event.kind, event.data) for event in store.events()] == [
            ("campaign_started", STARTED),
            ("proposal", {"slot": 0, "arm": "seed"}),
            ("note", {"text": "half\nway", "number": None}),
        ]
        assert [event.seq for event in store.events(after=2)] == [3]
        assert [event.kind for event in store.events(kind="note")] == ["note"]


def test_events_cannot_be_changed_or_deleted(tmp_path: Path) -> None:
    Store.create(tmp_path / "run", STARTED).close()
    raw = sqlite3.connect(tmp_path / "run" / FILE)
    for statement in ("UPDATE events SET data = '{}'", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            raw.execute(statement)
    raw.close()


def test_a_slot_has_one_verdict_and_a_key_is_evaluated_once(tmp_path: Path) -> None:
    with Store.create(tmp_path / "run", STARTED) as store:
        store.append("verdict", {}, slot=0, key="a")
        with pytest.raises(VortexError, match="contradicts the record"):
            store.append("verdict", {}, slot=0, key="b")
        with pytest.raises(VortexError, match="contradicts the record"):
            store.append("verdict", {}, slot=1, key="a")
        store.append("trial_started", {}, slot=1, key="b")
        store.append("trial_started", {}, slot=1, key="b")
        store.append("verdict", {}, slot=1, key="b")
        assert sum(1 for _ in store.events()) == 5


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Store.create(run, STARTED) as store:
        line = in_child(lambda: str(Store.write(run)))
        assert line == (
            f"VortexError: run 'run' is being written by process {os.getpid()}; wait for it, stop it, or give this "
            "campaign another name"
        )
        with Store.read(run) as reader:
            store.append("note", {"text": "while you read"})
            assert sum(1 for _ in reader.events()) == 2
    assert in_child(lambda: str(Store.write(run).writable)) == "True"


def test_creating_twice_is_refused(tmp_path: Path) -> None:
    Store.create(tmp_path / "run", STARTED).close()
    with pytest.raises(VortexError, match="run 'run' exists"):
        Store.create(tmp_path / "run", STARTED)


def test_opened_for_reading_cannot_write(tmp_path: Path) -> None:
    Store.create(tmp_path / "run", STARTED).close()
    with Store.read(tmp_path / "run") as store, pytest.raises(VortexError, match="not open for writing"):
        store.append("note", {})


def test_what_comes_after_the_end_is_refused_and_what_is_under_way_is_recorded(tmp_path: Path) -> None:
    """Evaluations end in threads of their own, also while a campaign is closed."""
    store, said = Store.create(tmp_path / "run", STARTED), list[str]()

    def write() -> None:
        try:
            while True:
                store.append("note", {"text": "x" * 5000})
        except VortexError as error:
            said.append(str(error))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    while store.mark().seq < 20:
        pass
    store.close()
    for thread in threads:
        thread.join(20)
    assert said == ["run 'run' is not open for writing"] * 4
    assert not (tmp_path / "run" / f"{FILE}-wal").exists(), "the log was not taken in"
    with Store.read(tmp_path / "run") as again:
        assert len(list(again.events())) == again.mark().seq >= 20


def test_a_record_without_events_is_one_line(tmp_path: Path) -> None:
    Store.create(tmp_path / "run", STARTED).close()
    raw = sqlite3.connect(tmp_path / "run" / FILE)
    raw.execute("DROP TRIGGER no_delete")
    raw.execute("DELETE FROM events")
    raw.commit()
    raw.close()
    with Store.read(tmp_path / "run") as store:
        for look in (store.first, store.mark):
            with pytest.raises(VortexError, match=f"event 1 is lost; .* `vortex doctor {tmp_path}/run`"):
                look()


@pytest.mark.parametrize("content", [None, b"", b"not a database at all" * 50])
def test_a_folder_without_a_campaign_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    for opening in (Store.read, Store.write):
        with pytest.raises(VortexError) as caught:
            opening(tmp_path)
        assert "\n" not in str(caught.value)
        assert FILE in str(caught.value)


def test_another_form_is_refused(tmp_path: Path) -> None:
    Store.create(tmp_path, STARTED).close()
    raw = sqlite3.connect(tmp_path / FILE)
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(VortexError, match="has form 99"):
        Store.read(tmp_path)


def _as_nobody(action: Callable[[], str]) -> Callable[[], str]:
    """Root may write anywhere; the check must be made by somebody else."""

    def run() -> str:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        return action()

    return run


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """A folder that another user can reach."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.getuid() and parent != Path("/") and parent != Path("/tmp"):
            parent.chmod(0o755)
    return tmp_path


def test_a_read_only_folder_can_be_read_and_not_written(open_folder: Path) -> None:
    run = open_folder / "run"
    with Store.create(run, STARTED) as store:
        store.append("note", {"text": "kept"})
        # While the log is still there, a reader without write permission must see what is in it.
        run.chmod(0o555)
        assert in_child(_as_nobody(lambda: str(sum(1 for _ in Store.read(run).events())))) == "2"
    for name in os.listdir(run):
        (run / name).chmod(0o444)
    line = in_child(_as_nobody(lambda: str(Store.write(run))))
    assert line.startswith(f"VortexError: run folder {run} cannot be used (Permission denied)"), line
    line = in_child(_as_nobody(lambda: str(Store.create(run / "inner", STARTED))))
    assert line.startswith(f"VortexError: run folder {run}/inner cannot be used (Permission denied)"), line
    assert in_child(_as_nobody(lambda: str(sum(1 for _ in Store.read(run).events())))) == "2"
    run.chmod(0o755)


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    """The limit on file size stands in for the end of the disk."""
    run = tmp_path / "run"

    def fill() -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        store = Store.create(run, STARTED)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        for number in range(1000):
            try:
                store.append("note", {"text": "x" * 2000, "number": number})
            except VortexError as error:
                return f"{number} {error}"
        return "never full"

    number, _, line = in_child(fill).partition(" ")
    assert line.startswith(f"the disk of {run} is full or failing"), line
    assert f"vortex search --resume {run}`" in line
    with Store.write(run) as store:
        notes = [event.data["number"] for event in store.events(kind="note")]
        assert notes == list(range(int(number)))
        store.append("note", {"number": "and on"})


WRITER = """
import sys
from pathlib import Path
from vortexlab.agent.store import Store
store = Store.write(Path(sys.argv[1]))
number = sum(1 for _ in store.events(kind="note"))
while True:
    store.append("note", {"number": number, "text": "x" * 5000})
    print(number, flush=True)
    number += 1
"""


def test_kill_nine_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    run = tmp_path / "run"
    Store.create(run, STARTED).close()
    for lines in (1, 7, 20, 41):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(run)], stdout=subprocess.PIPE, text=True, env={**os.environ}
        )
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(lines)]
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        with Store.read(run) as store:
            numbers = [event.data["number"] for event in store.events(kind="note")]
        assert numbers == list(range(len(numbers)))
        assert numbers[-1] >= acknowledged[-1]


def test_a_torn_log_costs_the_torn_event_alone(tmp_path: Path) -> None:
    run, torn = tmp_path / "run", tmp_path / "torn"
    store = Store.create(run, STARTED)
    sizes = []
    for number in range(6):
        store.append("note", {"number": number, "text": "x" * 9000})
        sizes.append((run / f"{FILE}-wal").stat().st_size)
    torn.mkdir()
    log = (run / f"{FILE}-wal").read_bytes()
    base = (run / FILE).read_bytes()
    store.close()
    for kept, cut in [(5, 0), (5, -1), (4, 1), (3, 777), (1, -4000)]:
        (torn / FILE).write_bytes(base)
        (torn / f"{FILE}-wal").write_bytes(log[: sizes[kept] + min(cut, 0)] + b"\xff" * max(cut, 0))
        with Store.write(torn) as again:
            count = sum(1 for _ in again.events(kind="note"))
            assert count == kept + (cut >= 0)
            again.append("note", {"number": "next"})
