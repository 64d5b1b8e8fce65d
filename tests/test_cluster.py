"""Campaigns on a Ray cluster: hosts that die and come, hosts that differ, and the same campaign as on one machine."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from campaign_fakes import FakeEvaluator, Threads, config

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.cluster import Cluster
from vortexlab.agent.run import Run
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.verdict import Verdict

ray = pytest.importorskip("ray", reason="Ray is not installed (extra `cluster`)")
pytestmark = pytest.mark.cluster
CONFIG = EvaluationConfig(threads=1)


class Hosts:
    """A Ray cluster of several hosts on this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as Several

        self._several = Several(initialize_head=True, head_node_args={"num_cpus": 0})
        self.address: str = self._several.address

    def add(self, cpus: int, **environment: str) -> Any:
        node = self._several.add_node(num_cpus=cpus, env_vars=environment)
        self._several.wait_for_nodes()
        return node

    def kill(self, node: Any) -> None:
        self._several.remove_node(node, allow_graceful=False)

    def kill_head(self) -> None:
        self._several.head_node.kill_gcs_server(check_alive=False)

    def close(self) -> None:
        ray.shutdown()
        self._several.shutdown()


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    here = Path(__file__).parent
    paths = [str(here), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))  # workers find the fakes
    made = Hosts()
    yield made
    made.close()


class Sleepy(FakeEvaluator):
    """Takes a while; its conditions are those of the host."""

    def __init__(self, config: EvaluationConfig):
        super().__init__(os.environ.get("FAKE_CONDITIONS", "fake"), config.seconds / 1000)
        self._fails = os.environ.get("FAKE_LOSES", "")

    def evaluate(self, source: str, knobs: dict[str, Any] | None = None, **more: Any) -> Verdict:
        verdict = super().evaluate(source, knobs, **more)
        if self._fails:
            why = {"gate": "speed", "reason": "the worker was lost"}
            return replace(verdict, status="error", speedup=None, accuracy=None, **why)
        return verdict


class Knowing(Sleepy):
    """Tells of oracles; its first one takes the process with it."""

    def oracle(self, source: str, knobs: dict[str, Any]) -> Verdict:
        if not os.path.exists(mark := os.environ["FAKE_MARK"]):
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self.evaluate(source, knobs), speedup=None)


class Faulty(Sleepy):
    """Fails by itself over Quest, at every host; `FAKE_BROKEN` ones fail over everything once they have begun."""

    def evaluate(self, source: str, knobs: dict[str, Any] | None = None, **more: Any) -> Verdict:
        if "class Quest:" in source or "FAKE_BROKEN" in os.environ:
            raise RuntimeError("out of\nmemory")
        return super().evaluate(source, knobs, **more)


def story(run: Run) -> list[object]:
    return [(t.slot, t.arm, t.proposal, t.hash, t.structure, t.verdict.to_json()) for t in run.trials if t.verdict]


def alone(runs: Path, parallel: int, **changes: Any) -> Run:
    """The same campaign on threads."""
    Campaign(config(runs, parallel=parallel, **changes), pool=Threads(parallel)).run()
    return Run.open("run", runs)


def test_a_host_dies_and_another_comes_and_nothing_is_lost_or_counted_twice(hosts: Hosts, tmp_path: Path) -> None:
    first, _ = hosts.add(2), hosts.add(2)
    said: list[str] = []
    pool = Cluster(replace(CONFIG, seconds=400.0), hosts.address, make=Sleepy, say=said.append)
    assert pool.width == 4 and pool.environment == "fake"
    settings, changes = config(tmp_path / "cluster", parallel=8, evaluations=48), list[str]()

    def watch(state: Any) -> None:
        if state.recorded >= 12 and not changes:
            hosts.kill(first)
            changes.append("one host less")
        elif state.recorded >= 20 and len(changes) == 1:
            hosts.add(2)
            changes.append("one host more")

    Campaign(settings, pool=pool).run(watch)
    run = Run.open("run", tmp_path / "cluster")
    assert len(changes) == 2 and run.progress().evaluations == 48 and not run.history.open
    slots = [event.data["slot"] for event in run.events("verdict")]
    assert sorted(slots) == list(range(len(run.trials)))
    assert len({trial.hash for trial in run.trials}) == len(run.trials)
    assert run.progress().errors == sum(t.verdict.reason == "the worker was lost" for t in run.trials if t.verdict)
    other = alone(tmp_path / "threads", 8, evaluations=48)
    assert story(run) == story(other) and run.leaderboard().to_json() == other.leaderboard().to_json()


def test_an_evaluator_that_fails_loses_one_evaluation_and_is_made_anew(hosts: Hosts, tmp_path: Path) -> None:
    hosts.add(1), hosts.add(1, FAKE_BROKEN="1")
    said: list[str] = []
    pool = Cluster(CONFIG, hosts.address, make=Faulty, say=said.append)
    Campaign(config(tmp_path, parallel=2, evaluations=12), pool=pool).run()
    run = Run.open("run", tmp_path)
    lost = [trial for trial in run.trials if trial.head and trial.head.status == "error"]
    assert lost and all("class Quest:" in trial.proposal.source for trial in lost)
    assert {trial.head.reason for trial in lost if trial.head} == {"its evaluator failed: RuntimeError: out of memory"}
    assert any("is tried on another host" in line for line in said) and run.progress().evaluations == 12


def test_oracles_are_measured_by_the_hosts(hosts: Hosts, tmp_path: Path) -> None:
    hosts.add(2, FAKE_MARK=str(tmp_path / "mark"))
    pool = Cluster(CONFIG, hosts.address, make=Knowing)
    Campaign(config(tmp_path, parallel=4), pool=pool).run()
    run = Run.open("run", tmp_path)
    assert len(run.history.oracles) == 3 and (tmp_path / "mark").exists()
    assert {found.head.status for found in run.history.oracles.values()} == {"accepted"}


def test_a_host_of_other_conditions_is_left_out_with_one_line(hosts: Hosts, tmp_path: Path) -> None:
    hosts.add(1), hosts.add(1)
    hosts.add(4, FAKE_CONDITIONS="another card")
    said: list[str] = []
    pool = Cluster(replace(CONFIG, seconds=50.0), hosts.address, make=Sleepy, say=said.append)
    assert pool.environment == "fake" and len(said) == 1 and "is left out" in said[0]
    hosts.add(4, FAKE_CONDITIONS="a third card")  # comes later, and is found out by the first task that it gets
    Campaign(config(tmp_path, parallel=8, evaluations=30), pool=pool).run()
    run = Run.open("run", tmp_path)
    assert {event.data["environment"] for event in run.events("verdict")} == {"fake"}
    assert len(said) <= 2 and run.progress().evaluations == 30
    assert story(run) == story(alone(tmp_path / "threads", 8, evaluations=30))


def test_a_campaign_goes_on_under_its_own_conditions(hosts: Hosts, tmp_path: Path) -> None:
    """Most hosts have become others; the campaign keeps to the one that is left."""
    for conditions in ("fake", "new", "new"):
        hosts.add(1, FAKE_CONDITIONS=conditions)
    Campaign(config(tmp_path, parallel=2, evaluations=4), pool=Threads(2)).run()
    pool = Cluster(CONFIG, hosts.address, make=Sleepy, environment="fake", say=lambda line: None)
    assert pool.environment == "fake"
    Campaign.resume("run", tmp_path, evaluations=6, pool=pool).run()
    assert Run.open("run", tmp_path).progress().evaluations == 6
    pool = Cluster(CONFIG, hosts.address, make=Sleepy, environment="gone", say=lambda line: None)
    with pytest.raises(VortexError, match="was measured under other conditions"):
        Campaign.resume("run", tmp_path, evaluations=8, pool=pool).run()


def test_what_a_host_loses_is_tried_on_another(hosts: Hosts, tmp_path: Path) -> None:
    hosts.add(1), hosts.add(1, FAKE_LOSES="all")
    said: list[str] = []
    pool = Cluster(CONFIG, hosts.address, make=Sleepy, say=said.append)
    Campaign(config(tmp_path, parallel=4, evaluations=14), pool=pool).run()
    run = Run.open("run", tmp_path)
    assert any("it is tried on another host" in line for line in said)
    assert not [trial.id for trial in run.trials if trial.verdict and trial.verdict.gate == "speed"]


def test_a_killed_controller_leaves_no_tasks_behind_and_goes_on(hosts: Hosts, tmp_path: Path) -> None:
    hosts.add(2)
    command = [sys.executable, str(Path(__file__).with_name("cluster_run.py")), hosts.address, str(tmp_path), "20"]
    for lines in (6, 14):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        process.kill()
        process.wait()
        process.stdout.close()
        run = Run.open("run", tmp_path)
        assert run.state == "interrupted" and len(run.history.running) <= 4
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    run = Run.open("run", tmp_path)
    assert story(run) == story(alone(tmp_path / "threads", 4, evaluations=20))


def test_a_head_that_dies_ends_the_campaign_with_one_line_and_resume_goes_on(hosts: Hosts, tmp_path: Path) -> None:
    hosts.add(2)
    command = [sys.executable, str(Path(__file__).with_name("cluster_run.py")), hosts.address, str(tmp_path), "120"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(12):
        process.stdout.readline()
    hosts.kill_head()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2 and "does not answer any more" in said.splitlines()[-1], said
    run = Run.open("run", tmp_path)
    assert run.state == "interrupted" and run.trials
    Campaign.resume("run", tmp_path, pool=Threads(4)).run()
    assert story(Run.open("run", tmp_path)) == story(alone(tmp_path / "threads", 4, evaluations=120))


def test_workers_that_are_killed_at_random_change_nothing(hosts: Hosts, tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4))
    print("random kills of seed", seed)
    rng, kills, seen = random.Random(seed), list[int](), list[int]()
    hosts.add(2), hosts.add(2)
    pool = Cluster(replace(CONFIG, seconds=300.0), hosts.address, make=Sleepy, say=lambda line: None)

    def watch(state: Any) -> None:
        seen.extend([state.recorded] * (state.phase == "recorded"))
        # Not so often that one program loses its worker again and again: then it is given up.
        if state.phase == "recorded" and len(kills) < len(seen) // 3:
            busy = [pid for pid, name in processes() if name.startswith("ray::_work")]
            if busy:
                kills.append(rng.choice(busy))
                os.kill(kills[-1], signal.SIGKILL)

    Campaign(config(tmp_path / "cluster", parallel=8, evaluations=60), pool=pool).run(watch)
    run, other = Run.open("run", tmp_path / "cluster"), alone(tmp_path / "threads", 8, evaluations=60)
    assert len(kills) >= 15 and story(run) == story(other)
    assert run.leaderboard().to_json() == other.leaderboard().to_json()


def processes() -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue


def test_what_cannot_be_is_one_line(hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("vortexlab.agent.cluster._CONTACT", 3.0)
        with pytest.raises(VortexError, match=r"no host of the cluster can evaluate \(none answered within 3 s\)"):
            Cluster(replace(CONFIG, device="cuda"), hosts.address, make=Sleepy, say=lambda line: None)
    hosts.add(1)

    with pytest.raises(VortexError, match=r"no host of the cluster can evaluate \(the model is missing\)"):
        Cluster(CONFIG, hosts.address, make=refuse, say=lambda line: None)


def refuse(config: EvaluationConfig) -> FakeEvaluator:
    raise VortexError("the model is missing")


def test_no_cluster_is_one_line() -> None:
    with pytest.raises(VortexError, match=r"no Ray cluster can be reached at '127.0.0.1:1'"):
        Cluster(CONFIG, "127.0.0.1:1")


def test_the_real_evaluator_keeps_its_contexts_between_tasks(tmp_path: Path) -> None:
    """`vortex search --parallel 2` on this machine, with the shipped model: each worker reads the contexts once, and
    the verdicts are those of one evaluator."""
    from vortexlab.cli.main import run as vortex

    small = ["--evaluations", "5", "--lengths", "512", "--tasks", "needles", "--contexts", "2", "--speed", "predicted",
             "--threads", "1", "--runs", str(tmp_path)]  # fmt: skip
    assert vortex(["search", "--name", "two", "--parallel", "2", *small]) == 0
    began = time.time()
    assert vortex(["search", "--name", "one", *small]) == 0
    one, two = Run.open("one", tmp_path), Run.open("two", tmp_path)
    assert time.time() > began and two.config.parallel == 2
    found = {trial.hash: trial.verdict for trial in one.trials}
    shared = [trial for trial in two.trials if trial.hash in found]
    assert len(shared) >= 4
    for trial in shared:
        other = found[trial.hash]
        assert other is not None and trial.verdict is not None
        assert trial.verdict.accuracy == other.accuracy and trial.verdict.outcomes == other.outcomes
    opened = [sum(g.seconds for g in t.verdict.gates) for t in two.trials if t.verdict]
    assert opened and ray.is_initialized() is False


class Unplugged(Cluster):
    """One whose head is gone, and nothing of Ray behind it."""

    def __init__(self, tasks: Callable[[], Any]) -> None:
        self.environment, self._head, self._gone = "fake", "host:6379", threading.Event()
        self._turn, self._left_out, self._open = threading.Lock(), {}, {}
        self._closed, self._tasks = threading.Event(), tasks

    def _task(self, asked: Any, *, on: str = "", avoid: Any = ()) -> Any:
        return self._tasks()


class Reference:
    """Of a task that never ends."""

    def future(self) -> Future[Any]:
        return Future()


def test_nobody_waits_for_what_is_sent_after_the_head_was_given_up() -> None:
    """The watch has told the open ones and has ended, before this one or while it was on its way."""
    pool = Unplugged(Reference)

    def meanwhile() -> Reference:
        pool._gone.set()
        return Reference()

    pool._tasks = meanwhile
    for _ in range(2):
        with pytest.raises(VortexError, match="the head of the Ray cluster at host:6379 does not answer any more"):
            pool.submit("", {}, ()).result(timeout=0)


def test_a_task_that_cannot_be_sent_or_comes_late_is_in_its_future() -> None:
    def refused() -> Any:
        raise RuntimeError("Ray was shut down")

    pool = Unplugged(refused)
    with pytest.raises(RuntimeError, match="was shut down"):
        pool.submit("", {}, ()).result(timeout=0)
    late, done = Future[Verdict](), Future[Any]()
    pool._open[late] = Reference()
    done.set_exception(RuntimeError("the task was lost"))
    pool._ray = SimpleNamespace(exceptions=SimpleNamespace(RayError=ConnectionError))
    pool._give_up(late)
    pool._arrived(late, ("fake", "", {}, []), frozenset(), done)  # raises nothing: it runs in a thread of Ray
    assert not pool._open and "does not answer" in str(late.exception(timeout=0))
