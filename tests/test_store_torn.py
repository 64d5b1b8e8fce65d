"""Copies of a campaign's files, taken while it is written, cut and overwritten: what opens, and what is rescued."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from campaign_fakes import FakeEvaluator, config

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.events import Event
from vortexlab.agent.rescue import Examination, examine, rescue
from vortexlab.agent.run import Run
from vortexlab.agent.store import FILE, Store
from vortexlab.dsl.errors import VortexError

SCRIPT = Path(__file__).with_name("campaign_fakes.py")
LOG = f"{FILE}-wal"
EVALUATIONS, FIRST, SECOND = 40, 16, 30


@dataclass(frozen=True)
class Taken:
    """Both files as they were at one moment, the events in them, and what the campaign comes to when left alone."""

    base: bytes
    log: bytes
    events: list[Event]
    leaderboard: object


def written(runs: Path, verdicts: int) -> tuple[bytes, bytes]:
    """Lets a controller work until the run has so many verdicts; the files as they are then, in the middle of it."""
    command = [sys.executable, str(SCRIPT), str(runs), "0", str(EVALUATIONS), "none"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert f"recorded {verdicts}\n" in process.stdout, "the controller ended before"
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    files = (runs / "run" / FILE).read_bytes(), (runs / "run" / LOG).read_bytes()
    process.kill()
    process.wait()
    process.stdout.close()
    return files


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Taken:
    """The first session's events are in the database, those of the second in the log."""
    runs = tmp_path_factory.mktemp("torn")
    written(runs, FIRST)
    Store.write(runs / "run").close()
    base, log = written(runs, SECOND)
    with Store.read(lay(runs / "copy" / "run", base, log)) as store:
        events = list(store.events())
    alone = Campaign(config(runs / "alone", evaluations=EVALUATIONS), evaluator=FakeEvaluator())
    alone.run()
    assert len(log) > 50 * 4096 and len(base) > 15 * 4096 and len(events) > 2 * SECOND
    return Taken(base, log, events, Run.open("run", runs / "alone").leaderboard().to_json()["entries"])


def lay(folder: Path, base: bytes, log: bytes) -> Path:
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(base)
    (folder / LOG).write_bytes(log)
    return folder


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def overwritten(content: bytes, rng: random.Random) -> bytes:
    start, size = rng.randrange(len(content)), rng.choice([16, 64, 512, 4096])
    return content[:start] + rng.randbytes(size)[: len(content) - start] + content[start + size :]


#: What happens to database and log.
DAMAGES: dict[str, Callable[[bytes, bytes, random.Random], tuple[bytes, bytes]]] = {
    "log cut": lambda base, log, rng: (base, cut(log, rng)),
    "database cut": lambda base, log, rng: (cut(base, rng), log),
    "both cut": lambda base, log, rng: (cut(base, rng), cut(log, rng)),
    "database overwritten": lambda base, log, rng: (overwritten(base, rng), log),
    "log overwritten": lambda base, log, rng: (base, overwritten(log, rng)),
}


def inside(found: Examination, events: list[Event]) -> None:
    """What was kept is the beginning of the events, and every verdict beside it is one of theirs."""
    kept = [item.event for item in found.kept]
    assert kept == events[: len(kept)]
    known = {(e.seq, e.detail) for e in events if e.kind == "verdict"}
    assert {(item.event.seq, item.event.detail) for item in found.measured} <= known


def goes_on(runs: Path, name: str, found: Examination, taken: Taken) -> None:
    """The rescued run ends as the campaign that was left alone, and measures nothing that was left over."""
    evaluator = FakeEvaluator()
    Campaign.resume(name, str(runs), evaluations=EVALUATIONS, evaluator=evaluator).run()
    run = Run.open(name, runs)
    assert run.leaderboard().to_json()["entries"] == taken.leaderboard
    reused = [event for event in run.events("verdict") if "from_run" in event.data]
    assert len(reused) == len(found.measured)
    assert len(evaluator.calls) == len(run.trials) - found.trials - len(reused)


def damaged(count: int, resumed: int, taken: Taken, tmp_path: Path) -> Counter[tuple[str, str]]:
    """Damages so many copies, each kind in turn, and sees what is left; every `resumed`-th rescued one goes on."""
    seed = int.from_bytes(os.urandom(4))
    print(f"{count} copies, seed {seed}")
    rng, ends, left = random.Random(seed), Counter[tuple[str, str]](), Counter[str]()
    for number in range(count):
        kind = list(DAMAGES)[number % len(DAMAGES)]
        base, log = DAMAGES[kind](taken.base, taken.log, rng)
        runs = tmp_path / str(number)
        folder = lay(runs / "run", base, log)
        found = examine(folder)
        assert (folder / FILE).read_bytes() == base and (folder / LOG).read_bytes() == log
        inside(found, taken.events)
        left[kind] += found.trials + len(found.measured)
        if not found.faults:
            assert kind != "database overwritten" or len(found.kept) == len(taken.events)
            with Store.write(folder) as store:
                assert [event.seq for event in store.events()] == [item.event.seq for item in found.kept]
            ends[kind, "opened"] += 1
        elif not found.kept and not (found.measured and any(e.event.kind == "campaign_resumed" for e in found.later)):
            # No event tells the settings, and those that stand beside a record were not copied.
            with pytest.raises(VortexError, match="nothing of a campaign is left"):
                rescue(folder, found)
            ends[kind, "nothing left"] += 1
        else:
            target = rescue(folder, found)
            ends[kind, "rescued"] += 1
            with Store.read(target) as store:
                assert list(store.events())[: len(found.kept)] == taken.events[: len(found.kept)]
            if sum(n for (_, end), n in ends.items() if end == "rescued") % resumed == 0:
                goes_on(runs, target.name, found, taken)
        shutil.rmtree(runs)
    for (kind, end), many in sorted(ends.items()):
        print(f"{kind}: {many} {end}")
    recorded = sum(event.kind == "verdict" for event in taken.events)
    for kind, verdicts in left.items():
        copies = sum(many for (name, _), many in ends.items() if name == kind)
        print(f"{kind}: {verdicts / copies:.1f} of {recorded} verdicts left on the average")
    assert ends["log cut", "opened"] == -(-count // len(DAMAGES)), "a cut log always opens"
    return ends


def test_damaged_copies_open_or_are_rescued(taken: Taken, tmp_path: Path) -> None:
    damaged(25, 4, taken, tmp_path)


@pytest.mark.slow
def test_two_hundred_damaged_copies_open_or_are_rescued(taken: Taken, tmp_path: Path) -> None:
    ends = damaged(200, 10, taken, tmp_path)
    assert sum(many for (_, end), many in ends.items() if end == "rescued") > 50
