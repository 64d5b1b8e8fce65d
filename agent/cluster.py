"""Evaluations on a Ray cluster, or on the devices of this machine through Ray.

An evaluation is a Ray task. Ray places it (`num_gpus`, `num_cpus`), runs it again on another host when its own dies,
and lets its autoscaler see the queue; we write no scheduler. Ray keeps worker processes between tasks, so each of them
keeps its evaluator, with model and contexts, until it is given another device or other conditions.

Numbers of different machines do not compare: the conditions of a campaign are those of its first host, and a host of
other conditions is left out, with one line that says why. Workers never touch the store.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from vortexlab.agent.pool import FULL, Evaluation, oracle_of
from vortexlab.dsl import check
from vortexlab.dsl.errors import VortexError, one_line
from vortexlab.dsl.ir import Attr, digest
from vortexlab.evaluator.config import REFERENCE_MODEL, EvaluationConfig, versions
from vortexlab.evaluator.ladder import Point
from vortexlab.evaluator.verdict import ERROR, Verdict

RETRIES = 3  # of a task whose worker or host died; of an evaluation whose sandbox was lost, once
_CONTACT = 120.0  # seconds in which some host must answer
_LOOK, _GONE = 2.0, 20.0  # seconds between looks at the head, and without it; after 60 Ray would end this process

_given_up: list[str] = []  # heads of clusters

MakeEvaluator = Callable[[EvaluationConfig], Evaluation]
#: Environment, source, knobs, points on the screen; without these the oracle of the program is asked for.
Asked = tuple[str, str, dict[str, Attr], list[Point] | None]


@dataclass(frozen=True)
class Host:
    """Where a task ran: Ray's id of the node, its name, and what measurements there depend on."""

    node: str
    name: str
    environment: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    """What a task brings back: a verdict, unless the host has other conditions than asked, or could not begin, or knows
    of no oracle."""

    host: Host
    verdict: Verdict | None = None
    complaint: str = ""


class _Resident:
    """The evaluator that this worker process keeps."""

    key = ""
    evaluator: Evaluation | None = None


def _evaluator(make: MakeEvaluator, config: EvaluationConfig, own_model: bool) -> Evaluation:
    if own_model:  # the model that is shipped lies elsewhere on another host
        config = replace(config, model=str(REFERENCE_MODEL))
    key = digest([config.to_json(), os.environ.get("CUDA_VISIBLE_DEVICES", "")])
    if _Resident.evaluator is None or _Resident.key != key:
        if _Resident.evaluator is not None:
            _Resident.evaluator.close()
        _Resident.evaluator, _Resident.key = make(config), key
    return _Resident.evaluator


def _work(
    make: MakeEvaluator, config: EvaluationConfig, own_model: bool, asked: Asked | None
) -> Answer:
    """In a worker: one evaluation under the conditions that were asked for and no others; of None, those it offers."""
    import ray

    node, name = ray.get_runtime_context().get_node_id(), socket.gethostname()
    host = Host(node, name, "", {})
    try:
        evaluator = _evaluator(make, config, own_model)
        host = Host(node, name, evaluator.environment, _facts(config))
        if asked is None:
            return Answer(host)
        environment, source, knobs, points = asked
        if host.environment != environment:
            return Answer(host, complaint="it has other conditions")
        if points is None:
            return Answer(host, oracle_of(evaluator, source, knobs))
        evaluator.rank_among(points)
        return Answer(host, evaluator.evaluate(source, knobs, fidelity=FULL))
    except VortexError as error:
        return Answer(host, complaint=str(error))
    except Exception as error:  # of the evaluator itself, which has to be made anew
        why = one_line(f"its evaluator failed: {type(error).__name__}: {error}")
        _forget()
        return Answer(host, complaint=why) if asked is None else Answer(host, lost(asked[1], asked[2], why))


def _forget() -> None:
    broken, _Resident.evaluator = _Resident.evaluator, None
    with suppress(Exception):
        if broken is not None:
            broken.close()


def _facts(config: EvaluationConfig) -> dict[str, str]:
    from vortexlab.evaluator.config import device_name

    return {"device": device_name(config.device), **versions()}


class Cluster:
    """Evaluations under `config` at `address`: ``local`` (Ray on this machine), ``auto`` (the cluster that is running
    here), or HOST:PORT or ray://HOST:PORT of one.

    `environment` is that of the campaign, where it was begun before. `make` builds the evaluator in a worker. `say` is
    told in a line of hosts that are left out and of what is tried again. Raises `VortexError` when Ray is not
    installed, no cluster is found, or no host can evaluate.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        address: str,
        *,
        environment: str = "",
        make: MakeEvaluator | None = None,
        say: Callable[[str], None] | None = None,
    ):
        self._config, self._make, self._say = config, make or _make_evaluator, say or _to_stderr
        self._ray = _connected(address)
        self._own_model = config.model == str(REFERENCE_MODEL)
        self._turn = threading.Lock()
        self._left_out: dict[str, str] = {}
        self._open: dict[Future[Any], Any] = {}  # -> the reference of its task
        self._closed, self._gone = threading.Event(), threading.Event()
        self._head = address if address.startswith("ray://") else ""
        try:
            self._head = self._head or self._ray.get_runtime_context().gcs_address
            self._nodes: list[Any] = self._ray.nodes()
            self._remote = self._ray.remote(_work)
            self._gpus = 1 if config.device == "cuda" else 0
            self._cpus = 1 if self._gpus else config.threads or min(self._hosts("CPU"), default=1)
            self.environment = self._agree(environment)
        except BaseException:
            self.close()
            raise
        for work in (self._watch, self._count):
            threading.Thread(target=work, daemon=True).start()

    def _count(self) -> None:
        """Keeps the list of hosts; the one place that waits for the head of the cluster."""
        while not self._closed.wait(_LOOK):
            with suppress(Exception):
                self._nodes = self._ray.nodes()

    def _watch(self) -> None:
        """Gives all evaluations up when nobody answers at the head of the cluster any more."""
        head, seen = self._head, time.monotonic()
        while not self._closed.wait(_LOOK):
            try:
                _reach(head)
                seen = time.monotonic()
            except VortexError:
                if time.monotonic() - seen <= _GONE:
                    continue
                self._gone.set()
                with self._turn:
                    futures = list(self._open)
                for future in futures:
                    self._give_up(future)
                return

    def _give_up(self, future: Future[Verdict]) -> None:
        line = f"the head of the Ray cluster at {self._head} does not answer any more; what is recorded is safe: "
        self._fail(future, VortexError(f"{line}go on with --resume when it does, or with --cluster elsewhere"))

    def _hosts(self, resource: str) -> list[int]:
        """How many of a resource every living host has that has any."""
        found = (node["Resources"].get(resource, 0) for node in self._nodes if node["Alive"])
        return [int(count) for count in found if count >= 1]

    @property
    def width(self) -> int:
        """Evaluations that the hosts of this moment run at a time."""
        if self._gpus:
            return max(1, sum(self._hosts("GPU")))
        return max(1, sum(count // self._cpus for count in self._hosts("CPU")))

    def _agree(self, wanted: str) -> str:
        """The conditions of the campaign: `wanted` where a host has them, or those of most hosts, which leaves the
        others out."""
        nodes = [node["NodeID"] for node in self._nodes if node["Alive"] and self._fits(node["Resources"])]
        if nodes:
            looks = [self._task(None, on=node) for node in nodes]
        else:  # one task in the queue tells an autoscaler what is needed
            want = "a GPU" if self._gpus else f"{self._cpus} CPUs"
            self._say(f"no host of the cluster has {want}; waiting {_CONTACT:g} s for one")
            looks = [self._task(None)]
        ready, _ = self._ray.wait(looks, num_returns=len(looks), timeout=_CONTACT)
        answers: list[Answer] = []
        for look in ready:
            with suppress(self._ray.exceptions.RayError):
                answers.append(self._ray.get(look))
        able = [answer.host for answer in answers if not answer.complaint]
        if not able:
            why = answers[0].complaint if answers else f"none answered within {_CONTACT:g} s"
            raise VortexError(f"no host of the cluster can evaluate ({why}); see `ray status`")
        counts = Counter(host.environment for host in able)
        chosen = wanted if wanted in counts else counts.most_common(1)[0][0]
        self._usual = next(host for host in able if host.environment == chosen)
        for answer in answers:
            if answer.complaint or answer.host.environment != chosen:
                self._leave_out(answer)
        return chosen

    def _fits(self, resources: Mapping[str, float]) -> bool:
        return resources.get("GPU", 0) >= self._gpus and resources.get("CPU", 0) >= self._cpus

    def _task(self, asked: Asked | None, *, on: str = "", avoid: Iterable[str] = ()) -> Any:
        """The reference to an answer. Nothing here waits for the head of the cluster."""
        from ray.util.scheduling_strategies import (
            NodeAffinitySchedulingStrategy,
            NodeLabelSchedulingStrategy,
            NotIn,
        )

        options: dict[str, Any] = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_retries": RETRIES}
        if on:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(on, soft=False)
        elif avoided := list(avoid):
            options["scheduling_strategy"] = NodeLabelSchedulingStrategy({"ray.io/node-id": NotIn(*avoided)})
        return self._remote.options(**options).remote(self._make, self._config, self._own_model, asked)

    def submit(self, source: str, knobs: Mapping[str, Attr], points: Iterable[Point]) -> Future[Verdict]:
        """Raises nothing: what goes wrong is in the future, a `VortexError` when no host is left."""
        return self._sent((self.environment, source, dict(knobs), list(points)))

    def oracle(self, source: str, knobs: Mapping[str, Attr]) -> Future[Verdict | None]:
        """Raises nothing either."""
        return self._sent((self.environment, source, dict(knobs), None))

    def _sent(self, asked: Asked) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            self._send(future, asked, frozenset())
        except Exception as error:
            self._fail(future, error)
        return future

    def _send(self, future: Future[Any], asked: Asked, avoid: frozenset[str]) -> None:
        if self._gone.is_set():
            self._give_up(future)
            return
        reference = self._task(asked, avoid=sorted({*avoid, *self._left_out}))
        with self._turn:
            self._open[future] = reference
            gone = self._gone.is_set()  # from here on `_watch` finds it
        if gone:
            self._give_up(future)
        reference.future().add_done_callback(lambda done: self._arrived(future, asked, avoid, done))

    def _arrived(self, future: Future[Any], asked: Asked, avoid: frozenset[str], done: Future[Any]) -> None:
        if self._closed.is_set():
            return
        try:
            found = self._judge(asked, avoid, done)
            if isinstance(found, frozenset):
                self._send(future, asked, found)
            else:
                with suppress(InvalidStateError):  # it was given up meanwhile
                    future.set_result(found)
        except BaseException as error:
            self._fail(future, error)
        if future.done():
            with self._turn:
                self._open.pop(future, None)

    @staticmethod
    def _fail(future: Future[Any], error: BaseException) -> None:
        with suppress(InvalidStateError):  # it was given up meanwhile
            future.set_exception(error)

    def _judge(self, asked: Asked, avoid: frozenset[str], done: Future[Any]) -> Verdict | frozenset[str] | None:
        """What a task found, or the hosts to avoid when it is to be tried once more."""
        try:
            answer: Answer = done.result()
        except self._ray.exceptions.RayError as error:
            return lost(asked[1], asked[2], f"its worker was lost {RETRIES + 1} times: {one_line(error)}")
        if answer.complaint:
            self._leave_out(answer)
            if not self._others(set(self._left_out)):
                raise VortexError(f"no host is left that can evaluate; the last was {self._left_out[answer.host.node]}")
            return avoid
        verdict, node = answer.verdict, answer.host.node
        if verdict and verdict.status == ERROR and not avoid and self._others({*self._left_out, node}):
            self._say(f"{answer.host.name} lost an evaluation ({verdict.reason}); it is tried on another host")
            return frozenset({node})
        return verdict

    def _others(self, but: set[str]) -> bool:
        """Whether a living host beside those could evaluate."""
        return any(
            node["Alive"] and node["NodeID"] not in but and self._fits(node["Resources"]) for node in self._nodes
        )

    def _leave_out(self, answer: Answer) -> None:
        host = answer.host
        if host.node in self._left_out:
            return
        why = answer.complaint
        if host.environment and host.environment != self._usual.environment:
            other = [
                f"{name} {host.facts.get(name)} instead of {fact}"
                for name, fact in self._usual.facts.items() if host.facts.get(name) != fact
            ]  # fmt: skip
            why = ", ".join(other) or "another model, other data or tuned tables"
        self._left_out[host.node] = f"{host.name} ({why})"
        self._say(f"host {host.name} is left out, since its numbers would not compare: {why}")

    def close(self) -> None:
        """Leaves the cluster; what still runs is given up."""
        with self._turn:
            running = dict(self._open)
            self._open.clear()
            closed = self._closed.is_set()
            self._closed.set()
        for future, reference in running.items():
            future.cancel()
            if not self._gone.is_set():
                with suppress(Exception):
                    self._ray.cancel(reference, force=True)
        if self._gone.is_set():
            _given_up.append(self._head)
        elif not closed:
            self._ray.shutdown()


def lost(source: str, knobs: Mapping[str, Attr], reason: str) -> Verdict:
    """The verdict on a program that nobody could evaluate."""
    from vortexlab.dsl import canonical_hash, structure_hash

    program, _ = check(source)
    assert program is not None  # it was parsed before it was sent
    return Verdict(
        program=program.name, source_hash=canonical_hash(program.bind(knobs)), structure=structure_hash(program),
        knobs=dict(knobs), status=ERROR, reason=reason,
    )  # fmt: skip


def _make_evaluator(config: EvaluationConfig) -> Evaluation:
    from vortexlab.evaluator.evaluator import Evaluator

    return Evaluator(config)


def _connected(address: str) -> Any:
    """The module `ray`, initialised."""
    try:
        import ray
    except ImportError as error:
        raise VortexError("evaluations at a time need Ray: pip install 'vortexlab[cluster]'") from error
    if address not in ("local", "auto"):
        _reach(address)  # Ray tries for minutes
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # tasks without a GPU leave the variable alone
    try:
        ray.init(
            address=address, log_to_driver=False, include_dashboard=False if address == "local" else None,
            logging_level=logging.ERROR, namespace="vortex",
        )  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise _unreachable(address, one_line(error, 200)) from error
    return ray


def leave(status: int) -> NoReturn:
    """Ends the process; where a cluster was given up for dead without Ray's own farewell, which waits for the head
    for a minute and then crashes."""
    sys.stdout.flush()
    sys.stderr.flush()
    if _given_up:
        os._exit(status)
    sys.exit(status)


def _reach(address: str) -> None:
    """Raises `VortexError` when nobody listens there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(getattr(error, "strerror", None) or error)) from error


def _unreachable(address: str, why: str) -> VortexError:
    how = "start one with `ray start --head`, or give --cluster local" if address == "auto" else "check the address"
    return VortexError(f"no Ray cluster can be reached at {address!r} ({why}); {how}")


def _to_stderr(line: str) -> None:
    print(f"vortex: {line}", file=sys.stderr, flush=True)
