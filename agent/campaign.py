"""A campaign: propose, evaluate, record, again, until the budget is spent.

One process does this (the store's lock sees to it), slot after slot. What is recorded is never lost and never done
again; a controller that was killed goes on where it stood, with the proposal that was running.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from vortexlab.agent import inbox
from vortexlab.agent.assemble import build_proposers
from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.prepared import Prepared, prepare
from vortexlab.agent.progress import OnProgress, ProgressState, progress
from vortexlab.agent.proposers.base import Member, Proposal, Proposer
from vortexlab.agent.proposers.grammar import GrammarProposer
from vortexlab.agent.replay import Replay
from vortexlab.agent.run import resolve
from vortexlab.agent.slots import Slots
from vortexlab.agent.store import Store, exists
from vortexlab.agent.study import Mirror
from vortexlab.agent.trials import HANDOFF, Arm, History, Trial, known_structures
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Attr, digest
from vortexlab.evaluator.verdict import ERROR, Head, Verdict, split

FULL = "full"
_POLL = 0.5  # seconds between two looks into the inbox while the campaign is paused
_LOST_IN_A_ROW = 5  # workers lost one after the other: not the programs' fault any more


class Evaluation(Protocol):
    """What a campaign needs of `evaluator.Evaluator`."""

    @property
    def environment(self) -> str: ...

    def evaluate(self, source: str, knobs: dict[str, Attr] | None = None, *, fidelity: str = FULL) -> Verdict: ...

    def recall(self, verdicts: Iterable[Verdict | Head]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Summary:
    """How a session of a campaign ended. `reason` is one line; `state` the last progress."""

    run: str
    folder: Path
    reason: str
    state: ProgressState


class Campaign:
    """The campaign that `config` describes, new or, where its folder holds it already, resumed.

    Raises `VortexError` when that folder holds another campaign. `evaluator` and `proposers` replace what the
    configuration asks for; the campaign closes the evaluator.
    """

    def __init__(
        self,
        config: CampaignConfig,
        *,
        evaluator: Evaluation | None = None,
        proposers: Callable[[Store, History], list[Proposer]] | None = None,
    ):
        if not config.name:
            config = replace(config, name=_free_name(Path(config.runs)))
        if exists(config.folder):
            with Store.read(config.folder) as store:
                found = History.of(store.events()).resumed["config"]
            recorded = CampaignConfig.from_json({**found, "name": config.name})  # a folder may be renamed
            differences = recorded.differences(config)
            if differences:
                raise VortexError(
                    f"run {config.name!r} exists with other settings ({differences[0]}); go on with "
                    f"--resume {config.name}, or name another"
                )
        self.config = config
        self._evaluator, self._proposers = evaluator, proposers

    @staticmethod
    def resume(
        name: str = "latest",
        runs: str | Path = "runs",
        *,
        evaluations: int | None = None,
        hours: float | None = None,
        llm: Mapping[str, Any] | None = None,
        evaluator: Evaluation | None = None,
    ) -> Campaign:
        """The recorded campaign, with its budget or another one (`llm`: limits of its language models).

        Raises `VortexError` for an unknown run."""
        folder = resolve(name, runs)
        with Store.read(folder) as store:
            config = CampaignConfig.from_json(History.of(store.events()).resumed["config"])
        config = replace(config, name=folder.name, runs=str(folder.parent)).with_budget(
            evaluations, hours, llm
        )
        return Campaign(config, evaluator=evaluator)

    def run(self, on_progress: OnProgress | None = None) -> Summary:
        """Works until the budget is spent or SIGINT or SIGTERM comes.

        The first signal lets the running evaluation finish, the second gives it up (it is done again on resume).
        Between two slots it takes what people ask for (`agent.inbox`), and waits while they want it paused.
        Raises `VortexError` when the folder, the disk or the evaluator fails; what is recorded stays.
        """
        with self._session(on_progress) as session, _Interrupt() as interrupt:
            try:
                reason = session.work(interrupt)
            except KeyboardInterrupt:
                reason = "stopped at once; the evaluation that was running is done again on resume"
            return session.finish(reason)

    def submit(self, proposal: Proposal, on_progress: OnProgress | None = None) -> Member:
        """Evaluates one program from outside in the next slot, within the budget, and returns it as a member.

        A program that was evaluated already is not evaluated again. Raises `VortexError` when it is no program or
        the budget is spent.
        """
        made = prepare(proposal, Arm(HANDOFF, proposal.operator))
        with self._session(on_progress) as session:
            session.complete_pending()
            trial = next((trial for trial in session.history.trials if trial.hash == made.hash), None)
            if trial is None:
                spent = session.spent()
                if spent:
                    raise VortexError(
                        f"the budget of run {self.config.name!r} is spent ({spent}); raise it: "
                        f"`vortex search --resume {self.config.name} --evaluations N`"
                    )
                trial = session.evaluate(made)
            session.finish(f"{trial.id} was told")
            return next(member for member in session.history.members() if member.id == trial.id)

    @contextmanager
    def _session(self, on_progress: OnProgress | None) -> Iterator[_Session]:
        evaluator = self._evaluator
        if evaluator is None:
            from vortexlab.evaluator.evaluator import Evaluator

            evaluator = Evaluator(self.config.evaluation)
        try:
            with _opened(self.config, evaluator.environment) as store:
                yield _Session(self.config, store, evaluator, self._proposers or self._own_proposers, on_progress)
        finally:
            evaluator.close()

    def _own_proposers(self, store: Store, history: History) -> list[Proposer]:
        return build_proposers(self.config, store, history)


class _Session:
    """One controller at work on an opened campaign."""

    def __init__(
        self,
        config: CampaignConfig,
        store: Store,
        evaluator: Evaluation,
        proposers: Callable[[Store, History], list[Proposer]],
        on_progress: OnProgress | None,
    ):
        self.config, self.store, self.evaluator, self._on_progress = config, store, evaluator, on_progress
        self.history, self._last = History(), 0
        self._began = time.monotonic()
        self._before = self._current().seconds
        self._known = known_structures(self.history)
        evaluator.recall(trial.head for trial in self.history.trials if trial.head is not None)
        self._mirror = Mirror(config.folder, config.name) if config.mirror else None
        self._replay = Replay.of(config, store.events(kind="measured"))
        self._lost = 0
        self.report("starting")
        fallback = GrammarProposer(config.library())
        self.slots = Slots(config, proposers(store, self.history), fallback, self._proposer_failed)

    def work(self, interrupt: _Interrupt) -> str:
        """Slot after slot; returns why it ended."""
        self.complete_pending()
        self._mirror_up()
        while True:
            self.take_requests()
            if self.history.paused and not self.spent():
                self._wait(interrupt)
            if interrupt.asked:
                if self.history.paused:
                    return "stopped while it was paused"
                return "stopped after the evaluation that was running"
            spent = self.spent()
            if spent:
                return f"the budget is spent: {spent}"
            self.report("proposing")
            made = self.slots.propose(self._current())
            if made is None:
                if not self.slots.proposers:
                    return f"the seeds are evaluated; go on with `vortex ask {self.config.name}`"
                return "nothing is left to try that was not evaluated already"
            self.evaluate(made)

    def spent(self) -> str:
        """Which limit of the budget is reached, in words; empty while there is some left."""
        limit, hours = self.config.evaluations, self.config.hours
        if limit is not None:
            if self.history.evaluated >= limit:
                return f"{limit} evaluations"
            attempts = int(self.config.attempts * limit)
            if len(self.history.trials) >= attempts:
                return f"{attempts} programs tried, most of them rejected before they were measured"
        if hours is not None and self._seconds() >= hours * 3600:
            return f"{hours:g} hours"
        return ""

    def take_requests(self) -> None:
        """Records what people asked for since the last slot, and then deletes it: a kill repeats nothing."""
        slot = self._current().next_slot
        for data in self._replay.requests:
            if data["slot"] <= slot and data["id"] not in self.history.requests:
                self._append("request", {**data, "from_run": self.config.replay}, slot=slot)
        for path, found in inbox.unread(self.config.folder, self.history):
            if found is not None:
                self._append("request", found, slot=slot)
            inbox.discard(path)

    def _wait(self, interrupt: _Interrupt) -> None:
        """Until somebody asks to go on or a signal comes. This is no time of work."""
        began = time.monotonic()
        self.report("paused")
        try:
            while self.history.paused and not interrupt.asked:
                time.sleep(_POLL)
                self.take_requests()
        finally:
            self._began += time.monotonic() - began

    def complete_pending(self) -> None:
        """Evaluates the proposal that a killed controller left behind."""
        pending = self._current().pending
        if pending is not None:
            self._evaluate(pending)

    def evaluate(self, made: Prepared) -> Trial:
        slot = self._current().next_slot
        self._append("proposal", made.to_json(), slot=slot)
        assert self.history.pending is not None
        return self._evaluate(self.history.pending)

    def _evaluate(self, trial: Trial) -> Trial:
        environment = self.evaluator.environment
        key = digest([trial.hash, FULL, environment])
        self._append("trial_started", {"knobs": dict(trial.knobs), "key": key}, slot=trial.slot)
        self.report("evaluating", trial.proposal.name)
        data: dict[str, Any] = {"fidelity": FULL, "environment": environment}
        if key in self._replay.verdicts:
            recorded, data["from_run"] = self._replay.verdicts[key]
            verdict = recorded.verdict
            self.evaluator.recall([verdict])
        else:
            verdict = self.evaluator.evaluate(trial.proposal.source, dict(trial.knobs), fidelity=FULL)
        data["verdict"], rest = split(verdict.to_json())
        self._append("verdict", data, slot=trial.slot, key=key, detail={"verdict": rest})
        self._mirror_up()
        self.report("recorded", trial.proposal.name)
        self._lost = self._lost + 1 if verdict.status == ERROR else 0
        if self._lost >= _LOST_IN_A_ROW:
            raise VortexError(
                f"{self._lost} evaluations in a row lost their worker (last: {verdict.reason}); see `vortex doctor`, "
                f"then go on with `vortex search --resume {self.config.name}`"
            )
        return self.history.trials[-1]

    def finish(self, reason: str) -> Summary:
        self._mirror_up()
        self._append("campaign_finished", {"reason": reason})
        state = self.report("finished")
        return Summary(self.config.name, self.config.folder, reason, state)

    def report(self, phase: str, current: str = "") -> ProgressState:
        state = progress(
            self.history, self.config, phase, current=current, seconds=self._seconds(), seed_structures=self._known
        )
        if self._on_progress is not None:
            self._on_progress(state)
        return state

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def _append(self, kind: str, data: dict[str, Any], **where: Any) -> None:
        """Commits an event (`Store.append`) and folds it."""
        self.store.append(kind, data, **where)
        self._current()

    def _current(self) -> History:
        """The history with everything that was appended since, by us or by a proposer's recorder."""
        for event in list(self.store.events(after=self._last)):
            self.history.add(event)
            self._last = event.seq
        return self.history

    def _proposer_failed(self, slot: int, proposer: str, reason: str, permanent: bool) -> None:
        self._append("proposer_failed", {"proposer": proposer, "reason": reason, "permanent": permanent}, slot=slot)

    def _mirror_up(self) -> None:
        """A mirror that cannot be written is given up for this session; the campaign goes on without."""
        if self._mirror is None:
            return
        try:
            self._mirror.bring_up(self.history.trials)
        except Exception as error:
            self._mirror = None
            line = " ".join(str(error).split())[:200]
            self._append("note", {"text": f"the copy for optuna-dashboard is not kept any longer: {line}"})


class _Interrupt:
    """SIGINT and SIGTERM while it is entered: the first one is noted in `asked`, the second raises."""

    def __init__(self) -> None:
        self.asked = False
        self._old: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __enter__(self) -> _Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def _opened(config: CampaignConfig, environment: str) -> Store:
    """The campaign's store, begun or resumed. Raises `VortexError` when it was measured elsewhere."""
    from vortexlab.evaluator.config import versions

    if not exists(config.folder):
        structures = sorted(known_structures(History()))
        started = {
            "config": config.to_json(),
            "environment": environment,
            "versions": versions(),
            "seed_structures": structures,
        }
        store = Store.create(config.folder, started)
    else:
        store = Store.write(config.folder)
        try:
            before = store.first().data["environment"]
            if before != environment:
                raise VortexError(
                    f"run {config.name!r} was measured under other conditions (machine, versions, model, data or "
                    "settings); numbers of both would not compare: start a campaign of another name"
                )
            store.append("campaign_resumed", {"config": config.to_json(), "versions": versions()})
        except BaseException:
            store.close()
            raise
    # For people and scripts; the store is the truth, so a disk that refuses this file changes nothing.
    with suppress(OSError):
        (config.folder / "config.json").write_text(json.dumps(config.to_json(), indent=2) + "\n")
    return store


def _free_name(runs: Path) -> str:
    stem = time.strftime("%Y%m%d-%H%M%S")
    names = (stem if number == 1 else f"{stem}-{number}" for number in range(1, 1000))
    return next(name for name in names if not (runs / name).exists())
