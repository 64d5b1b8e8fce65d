"""Attacks 11 to 31: hostile code in the place of the worker costs one request, is told apart, and leaves nothing.

Each of them succeeds once its defence is taken away, so none of these tests passes because nothing was tried.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from defences import DEFENCES
from pids import gone
from test_house_imports import MAY_IMPORT

from vortexlab.evaluator import frames
from vortexlab.evaluator.attacks import hostile, processes
from vortexlab.evaluator.attacks.attack import found
from vortexlab.evaluator.attacks.processes import ATTACKS, HostileSandbox, Range
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.evaluator import Evaluator
from vortexlab.evaluator.sandbox import Limits, Sandbox, WorkerLost, has_bubblewrap

IDS = [f"{attack.id} {attack.tries}" for attack in ATTACKS]
#: What only walls of the kernel, or bubblewrap, can stop.
OF_THE_KERNEL = ("A16", "A21", "A22", "A23", "A24", "A25", "A26", "A27")
#: Attack, one way of it, and the defences that must all be gone for it to get through.
WITHOUT = [
    ("A11", "loop", ["deadline"]),
    ("A12", "hold the lock", ["deadline"]),
    ("A13", "exit", ["end of answers"]),
    ("A13", "interrupt", ["end of answers"]),
    ("A14", "hard exit", ["end of answers"]),
    ("A15", "abort", ["end of answers"]),
    ("A15", "segfault", ["end of answers"]),
    ("A16", "kill", ["Landlock", "bubblewrap"]),
    ("A17", "deaf", ["deadline"]),
    ("A18", "memory", ["watch of memory", "resource limits"]),
    ("A18", "shared memory", ["watch of memory"]),
    ("A18", "headless memory", ["look behind zombies"]),
    ("A18", "misnamed memory", ["any name is read"]),
    ("A18", "hidden memory", ["seccomp"]),
    ("A19", "processes", ["watch of processes"]),
    ("A19", "fork bomb", ["watch of processes"]),
    ("A20", "threads", ["watch of processes"]),
    ("A21", "descriptors", ["resource limits"]),
    ("A21", "raises limits", ["no capabilities", "bubblewrap"]),
    ("A22", "big file", ["resource limits"]),
    ("A22", "files elsewhere", ["Landlock", "bubblewrap"]),
    ("A22", "many files", ["watch of the disk"]),
    ("A23", "orphan", ["network namespace", "bubblewrap"]),
    ("A23", "headless orphan", ["network namespace", "bubblewrap"]),
    ("A24", "network", ["seccomp", "network namespace", "Landlock", "bubblewrap"]),
    ("A25", "secrets", ["Landlock", "no capabilities", "bubblewrap"]),
    ("A25", "secrets", ["empty environment"]),
    ("A26", "writes outside", ["Landlock", "bubblewrap"]),
    ("A27", "modifies", ["Landlock", "bubblewrap"]),
    ("A27", "modifies", ["cleared folder"]),
    ("A28", "flood", ["bounded tail"]),
    ("A29", "pickled", ["plain JSON"]),
    ("A29", "tagged", ["plain JSON", "nonce"]),
    ("A29", "no JSON", ["plain JSON", "nonce"]),
    ("A29", "a list", ["finite numbers and distinct keys"]),
    ("A29", "not finite", ["finite numbers and distinct keys"]),
    ("A29", "a key twice", ["finite numbers and distinct keys"]),
    ("A29", "deep", ["finite numbers and distinct keys"]),
    ("A29", "too long", ["bounded answers"]),
    ("A30", "metrics file", ["end of answers"]),
    ("A30", "twice", ["one answer"]),
    ("A30", "replay", ["nonce"]),
    ("A31", "for another", ["nonce"]),
    ("A31", "later again", ["nonce", "one answer"]),
    ("A31", "late", ["deadline"]),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Range]:
    with processes.shared(Range(root=str(tmp_path_factory.mktemp("range")))) as found:
        yield found
    assert found.survivors() == []
    assert not found.place.exists()


@pytest.fixture
def bare(place: Range, monkeypatch: pytest.MonkeyPatch) -> Range:
    """Without bubblewrap, as on most machines."""
    monkeypatch.setattr(Sandbox, "bubblewrap", False)
    place.box.stop()
    return place


def needs_walls(place: Range, attack: str) -> None:
    stand = place.ask("well")["walls"].split()
    if attack in OF_THE_KERNEL and len(stand) < 4:
        pytest.skip(f"this kernel has only these walls: {stand}")


@pytest.mark.parametrize("attack", ATTACKS, ids=IDS)
def test_an_attack_is_stopped(attack: processes.Attack, bare: Range) -> None:
    needs_walls(bare, attack.id)
    verdict, ways = found(attack, attack.run())
    assert verdict == attack.expected and ways >= 1


@pytest.mark.skipif(not has_bubblewrap(), reason="bubblewrap is not installed, or may not do its work here")
@pytest.mark.parametrize("attack", [a for a in ATTACKS if a.id in OF_THE_KERNEL or a.id == "A15"], ids=lambda a: a.id)
def test_bubblewrap_changes_no_verdict(attack: processes.Attack, place: Range) -> None:
    place.box.stop()
    verdict, _ = found(attack, attack.run())
    assert verdict == attack.expected


@pytest.mark.parametrize(("attack", "way", "removed"), WITHOUT, ids=[f"{a} {w} {'+'.join(r)}" for a, w, r in WITHOUT])
def test_without_its_defence_an_attack_succeeds(
    attack: str, way: str, removed: list[str], bare: Range, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_walls(bare, attack)
    if way == "raises limits" and os.getuid() != 0:
        pytest.skip("only root has rights to lose")
    bare.box.stop()
    expected = {action: item.expected for item in ATTACKS if item.id == attack for action in _actions(item)}[way]
    with monkeypatch.context() as patch:
        for name in removed:
            DEFENCES[name](patch)
        patch.setattr(bare, "patience", 2.5)
        verdict = bare.attack(way)
        bare.box.stop()
    for pid in bare.survivors():
        os.kill(pid, signal.SIGKILL)
    _renew(bare)
    assert verdict != expected, "the attack fails without this defence too: it shows nothing"


def _actions(attack: processes.Attack) -> tuple[str, ...]:
    return attack.run.__closure__[0].cell_contents  # type: ignore[no-any-return, attr-defined, index]


def _renew(place: Range) -> None:
    """The range as it was, after an attack that went through."""
    for path in sorted(place.outside.iterdir()):
        path.rmdir() if path.is_dir() else path.unlink()
    (place.outside / "old").write_text("as it was")
    for folder in ("/dev/shm", "/tmp", "/var/tmp", "/run"):
        Path(folder, place.token).unlink(missing_ok=True)
    if place.victim.poll() is not None:
        place.victim = subprocess.Popen([*processes.SLEEPER], start_new_session=True, env=place.victim_environment())
    place.box._clear()


def test_every_way_of_every_attack_has_its_counterpart_without_the_defence() -> None:
    ways = {(attack.id, action) for attack in ATTACKS for action in _actions(attack)}
    assert ways == {(attack, way) for attack, way, _ in WITHOUT}
    assert {name for _, _, removed in WITHOUT for name in removed} == set(DEFENCES)
    assert {int(attack.id[1:]) for attack in ATTACKS} == set(range(11, 32))


# --- the entry -----------------------------------------------------------------------------------------------------


def test_hostile_code_cannot_be_reached_by_a_campaign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The evaluator starts another module, hands it no second descriptor, and that module has no such operation."""
    for name in ("VORTEX_ATTACK", "VORTEX_WORKER", "VORTEX_MODULE"):
        monkeypatch.setenv(name, hostile.PASSWORD.decode())
    with Evaluator(EvaluationConfig(tasks=("keys",), lengths=(320,), contexts=1, compile_for=())) as evaluator:
        box = evaluator._place.sandbox
        assert type(box) is Sandbox and box.command()[-1] == "vortexlab.evaluator.worker"
        assert not any("hostile" in word for word in box.command())
        assert hostile.PASSWORD.decode() not in box.environment().values()
        read_end, write_end = os.pipe()
        assert box.handed(write_end) == (write_end,)
        os.close(read_end), os.close(write_end)
    from vortexlab.evaluator import worker

    assert not set(hostile.ACTIONS) & set(dir(worker.Worker))


@pytest.mark.parametrize("arguments", [[], ["0"], ["x"], ["99"], ["-1"]])
def test_hostile_code_does_nothing_without_its_password(arguments: list[str]) -> None:
    code = [sys.executable, "-m", "vortexlab.evaluator.attacks.hostile", "1", *arguments]
    done = subprocess.run(code, input=b"not the password", capture_output=True, check=False)
    assert done.returncode == 1 and done.stdout == b"" and b"vortex attack" in done.stderr


def test_nothing_but_the_command_knows_of_hostile_code(repo_root: Path) -> None:
    files = [file for room in MAY_IMPORT for file in (repo_root / room).rglob("*.py")]
    files += (repo_root / "vortexlab").rglob("*.py")
    knowing = {file.relative_to(repo_root).as_posix() for file in files if "evaluator.attacks" in file.read_text()}
    assert {name for name in knowing if not name.startswith("evaluator/attacks/")} <= {
        "agent/attacks.py", "vortexlab/cli/attack.py",
    }  # fmt: skip


# --- what else the sandbox promises --------------------------------------------------------------------------------


def test_a_worker_that_does_not_read_cannot_block_the_controller(bare: Range) -> None:
    bare.ask("well")
    with pytest.raises(WorkerLost) as lost:
        bare.box.request({"op": "hold the lock", "padding": "x" * (8 << 20)}, seconds=1.0)
    assert lost.value.kind == "time"


def test_the_worker_sees_an_empty_environment_and_its_limits(bare: Range, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HTTPS_PROXY", "LD_PRELOAD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "")
    bare.box.stop()
    seen = bare.ask("well")
    hidden = [name for name in seen["environment"] if "KEY" in name or "PROXY" in name or "PRELOAD" in name]
    assert hidden == [] and seen["folder"] == str(bare.box.scratch)
    size = bare.box.limits.memory_mb << 20
    assert seen["limits"] == {
        "RLIMIT_CORE": [0, 0], "RLIMIT_NOFILE": [512, 512], "RLIMIT_FSIZE": [size, size], "RLIMIT_DATA": [2 * size] * 2,
    }  # fmt: skip


def test_last_words_are_one_printable_line(bare: Range) -> None:
    bare.ask("flood")
    with pytest.raises(WorkerLost) as lost:
        bare.ask("hard exit")
    assert str(lost.value).isprintable() and len(str(lost.value)) < 400


def test_what_is_sealed_is_found_again_and_only_as_it_was(tmp_path: Path) -> None:
    box = HostileSandbox(Limits(memory_mb=256), threads=1, scratch_root=str(tmp_path))
    (box.scratch / "contexts.kv").write_text("read")
    (box.scratch / "tables").mkdir()
    (box.scratch / "tables" / "a.json").write_text("{}")
    assert box.intact and not box.sealed
    box.seal()
    assert box.intact and box.sealed
    (box.scratch / "left").mkdir()
    (box.scratch / "left" / "behind").write_text("x")
    (box.scratch / "link").symlink_to(tmp_path)
    assert box.intact
    box.start()
    left = sorted(str(p.relative_to(box.scratch)) for p in box.scratch.rglob("*"))
    assert left == ["contexts.kv", "tables", "tables/a.json"] and box.sealed
    facts = (box.scratch / "contexts.kv").stat()
    (box.scratch / "contexts.kv").write_text("evil")
    os.utime(box.scratch / "contexts.kv", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert not box.intact, "the time of change tells"
    box.start()
    assert list(box.scratch.iterdir()) == [] and not box.sealed
    box.close()


@pytest.mark.parametrize("bubblewrap", [False, True])
def test_a_worker_dies_with_its_controller(bubblewrap: bool, tmp_path: Path) -> None:
    """In the midst of a request: an idle worker would end by itself when its input does."""
    code = (
        "import os, signal, sys; from vortexlab.evaluator.attacks.processes import HostileSandbox, Limits;"
        "from vortexlab.evaluator import frames;"
        f"HostileSandbox.bubblewrap = {bubblewrap};"
        "box = HostileSandbox(Limits(), threads=1, scratch_root=sys.argv[1]); box.request({'op': 'well'});"
        "print(*box._members(thorough=True), flush=True);"
        "loop = frames.encode({'nonce': 'n', 'op': 'deaf'}, frames.REQUEST_LIMIT);"
        "os.write(box._process.stdin.fileno(), loop); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == -signal.SIGKILL
    pids = list(map(int, done.stdout.split()))
    assert pids and gone(pids)


def test_a_compiling_process_dies_with_its_worker(tmp_path: Path) -> None:
    """With all that it started: a compiler can go on for long."""
    code = (
        "import os, signal, sys, threading; from vortexlab.kernels.gpu import forks;"
        "server = forks.Server('vortexlab.kernels.gpu.aot'); server._start(dict(os.environ));"
        "print(server._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == -signal.SIGKILL
    assert gone([int(done.stdout)])


def test_what_a_killed_controller_left_behind_is_cleared_away(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from vortexlab.evaluator.sandbox import Limits, Sandbox;"
        "box = Sandbox(Limits(), threads=1, scratch_root=sys.argv[1]); (box.scratch / 'contexts.kv').write_text('x');"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    living = HostileSandbox(Limits(), threads=1, scratch_root=str(tmp_path))
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
        assert len(list(tmp_path.iterdir())) == 2, "the living one and the latest that was killed"
    HostileSandbox(Limits(), threads=1, scratch_root=str(tmp_path)).close()
    assert list(tmp_path.iterdir()) == [living.scratch]
    living.close()
    assert list(tmp_path.iterdir()) == []


def test_a_stream_ends_between_messages_and_nowhere_else() -> None:
    whole = frames.encode({"a": 1}, 100)
    stream = io.BytesIO(whole * 2)
    assert [frames.read(stream, 100) for _ in range(3)] == [{"a": 1}, {"a": 1}, None]
    for cut in range(1, len(whole)):
        with pytest.raises(frames.FrameError, match="inside a message"):
            frames.read(io.BytesIO(whole[:cut]), 100)


def test_messages_are_bounded_and_finite() -> None:
    with pytest.raises(frames.FrameError):
        frames.encode({"value": float("nan")}, 100)
    with pytest.raises(frames.FrameError, match="exceeds"):
        frames.encode({"value": "x" * 200}, 100)
    with pytest.raises(frames.FrameError, match="announced"):
        frames.body_length(frames.HEADER.pack(101), 100)
    assert frames.body_length(frames.HEADER.pack(100), 100) == 100
    for body in (b"[1]", b"{", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff"):
        with pytest.raises(frames.FrameError):
            frames.decode(body)
