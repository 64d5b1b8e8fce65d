"""One controller at work on an opened campaign: it proposes, has programs evaluated, and records.

What it decides follows from the record alone, at any speed of any number of workers: the program of a slot is chosen
with the verdicts of all slots but the `parallel` - 1 before it, however many of those are known already. With one
evaluation at a time that is everything.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from types import FrameType
from typing import Any

from vortexlab.agent import admission, inbox, oracles, status
from vortexlab.agent.assemble import Recorder
from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.events import Mark
from vortexlab.agent.naming import called
from vortexlab.agent.pool import FULL, Pool
from vortexlab.agent.prepared import Prepared
from vortexlab.agent.progress import OnProgress, ProgressState, progress, recorded
from vortexlab.agent.proposers.base import Proposer
from vortexlab.agent.proposers.grammar import GrammarProposer
from vortexlab.agent.replay import Replay
from vortexlab.agent.slots import Slots
from vortexlab.agent.store import Store
from vortexlab.agent.study import Mirror
from vortexlab.agent.trials import History, Trial, known_structures
from vortexlab.dsl.errors import VortexError, one_line
from vortexlab.dsl.ir import digest
from vortexlab.evaluator.ladder import Point
from vortexlab.evaluator.verdict import ERROR, Verdict, split

_POLL = 0.5  # seconds between two looks at signals and the inbox while there is nothing else to do
_LOST_IN_A_ROW = 5  # workers lost one after the other: not the programs' fault any more


@dataclass(frozen=True)
class Summary:
    """How a session of a campaign ended. `reason` is one line; `state` the last progress."""

    run: str
    folder: Path
    reason: str
    state: ProgressState


class Session:
    """Works on `store`; `proposers` are made from what records for them and the history."""

    def __init__(
        self,
        config: CampaignConfig,
        store: Store,
        pool: Pool,
        proposers: Callable[[Recorder, History], list[Proposer]],
        on_progress: OnProgress | None,
    ):
        self.config, self.store, self.pool, self._on_progress = config, store, pool, on_progress
        self.history, self.mark = History(), Mark(0, 0.0)
        #: What the next slot is decided from.
        self.known = self.history if config.parallel == 1 else History(eager=False)
        self._points: list[Point | None] = []  # on the screen, of every trial
        self._news, self._faults = threading.Condition(), list[BaseException]()
        self._landing = threading.Lock()
        self._arrived: list[Trial] = []  # since the last look
        self._lost: list[str] = []  # why the latest evaluations lost their worker, one after the other
        self._landings, self._over = 0, False
        self._kept = self.mark
        self._interrupt: Interrupt | None = None
        self._began, self._stood = time.monotonic(), 0.0
        self._refresh()
        self._arrived.clear()
        self._lost.clear()
        self.known.fold(self.known.next_slot - config.parallel + 1)
        self._before = self.history.seconds
        self._seeds = known_structures(self.history)
        self._mirror = Mirror(config.folder, config.name) if config.mirror else None
        self._replay = Replay.of(config, store.events(kind="measured"))
        self.report("starting")
        fallback = GrammarProposer(config.library())
        self.slots = Slots(config, proposers(self._told, self.history), fallback, self._proposer_failed)

    def work(self, interrupt: Interrupt) -> str:
        """Slot after slot; returns why it ended."""
        self._interrupt = interrupt
        self.take_up()
        while True:
            self.take_requests()
            if self.history.paused and not self.spent():
                self._pause(interrupt)
            if interrupt.asked:
                self.wait_for(self.history.next_slot)
                return f"stopped {'while it was paused' if self.history.paused else 'after what was running'}"
            running = len(self.known.open)
            if running >= self.config.parallel or (running and self.spent(running)):
                self._wait(len(self.known.trials))
                self.known.fold(len(self.known.trials) + 1)
                continue
            if spent := self.spent():
                self.measure_oracles(interrupt)
                return f"the budget is spent: {spent}"
            self.report("proposing")
            made = self.slots.propose(self.known)
            self._raise_faults()
            if self._stopping():  # while a model was asked: its answer is recorded, and the next session uses it
                continue
            if made is not None:
                self.begin(made)
            elif running:  # what is running may open up more
                self.wait_for(len(self.known.trials) + 1)
                self.known.fold(len(self.known.trials) + 1)
            elif not self.slots.proposers:
                return f"the seeds are evaluated; go on with `vortex ask {quote(self.config.name)}`"
            else:
                self.measure_oracles(interrupt)
                if any(item["hash"] not in self.known.hashes() for item in self._refresh().asked):
                    continue  # proposed meanwhile
                return "nothing is left to try that was not evaluated already"

    def spent(self, running: int = 0) -> str:
        """Which limit of the budget is reached, in words, if all that are `running` count; empty while some is left."""
        limit, hours = self.config.evaluations, self.config.hours
        if limit is not None:
            if self.known.evaluated + running >= limit:
                return f"{limit} evaluations"
            attempts = int(self.config.attempts * limit)
            if len(self.known.trials) + running >= attempts:
                return f"{attempts} programs tried, most of them rejected before they were measured"
        if hours is not None and self._seconds() >= hours * 3600:
            return f"{hours:g} hours"
        return ""

    def take_requests(self) -> None:
        """Records what people asked for since the last slot, and then deletes it: a kill repeats nothing."""
        slot = self._refresh().next_slot
        for data in self._replay.requests:
            if data["slot"] <= slot and data["id"] not in self.history.requests:
                self._append("request", {**data, "from_run": self.config.replay}, slot=slot)
        for path, found in admission.unread(self.config.folder, self.history):
            if found is not None:
                self._append("request", found, slot=slot)
            inbox.discard(path)

    def _pause(self, interrupt: Interrupt) -> None:
        """Until somebody asks to go on or a signal comes. This is no time of work."""
        with self._no_work():
            self.report("paused")
            self.keep_status()
            while self.history.paused and not interrupt.asked:
                time.sleep(_POLL)
                self.take_requests()
                self._notice()
                self.keep_status()

    @contextmanager
    def _no_work(self) -> Iterator[None]:
        """Meanwhile the clock of work stands still."""
        self._stood = time.monotonic()
        try:
            yield
        finally:
            self._began += time.monotonic() - self._stood
            self._stood = 0.0

    # --- evaluations -------------------------------------------------------------------------------------------

    def take_up(self) -> None:
        """Has evaluated what a killed controller left behind."""
        for trial in self._refresh().running:
            self._start(trial)
        self._mirror_up()

    def begin(self, made: Prepared) -> int:
        """Records the proposal and has it evaluated; returns its slot."""
        slot = self._refresh().next_slot
        self._append("proposal", made.to_json(), slot=slot)
        self._start(self.history.open[slot])
        return slot

    def _start(self, trial: Trial) -> None:
        environment = self.pool.environment
        key = digest([trial.hash, FULL, environment])
        self._append("trial_started", {"knobs": dict(trial.knobs), "key": key}, slot=trial.slot)
        self.report("evaluating", trial.proposal.name)
        self.keep_status()
        data: dict[str, Any] = {"fidelity": FULL, "environment": environment}
        if key in self._replay.verdicts:
            recorded, data["from_run"] = self._replay.verdicts[key]
            self._record(trial.slot, key, data, recorded.verdict)
        else:
            before = self._points[: max(0, trial.slot - self.config.parallel + 1)]
            future = self.pool.submit(trial.proposal.source, trial.knobs, [point for point in before if point])
            future.add_done_callback(partial(self._landed, trial.slot, key, data))
        self._notice()

    def _landed(self, slot: int, key: str, data: dict[str, Any], future: Future[Verdict]) -> None:
        """Records a verdict as soon as it is there, from whatever thread brings it, until the session ends at once."""
        try:
            with self._landing:
                if not self._over and not future.cancelled():
                    self._record(slot, key, data, future.result())
        except BaseException as error:
            self._faults.append(error)
        with self._news:
            self._landings += 1
            self._news.notify_all()

    def _record(self, slot: int, key: str, data: dict[str, Any], verdict: Verdict) -> None:
        head, rest = split(verdict.to_json())
        self.store.append("verdict", {**data, "verdict": head}, slot=slot, key=key, detail={"verdict": rest})

    def measure_oracles(self, interrupt: Interrupt) -> None:
        """For the leading programs what the best choice of as many pages would keep (`agent.oracles`). This is no time
        of work; a signal leaves the rest to the next session, and one that fails is a note."""
        leading = oracles.wanted(self._refresh(), self.config.oracles)
        if not leading:
            return
        self._append("oracles_begun", {"ids": [trial.id for trial in leading]})
        with self._no_work():
            running: list[tuple[Trial, Future[Verdict | None]]] = []
            for trial in leading:
                if interrupt.asked:
                    break
                self.report("bounding", trial.proposal.name)
                self.keep_status()
                running.append((trial, self._oracle(trial)))
                if running[-1][1].done():
                    self._keep_oracle(*running.pop())
            for trial, future in running:
                while not future.done() and not interrupt.asked:
                    self.keep_status()
                    wait([future], timeout=_POLL)
                if future.done():
                    self._keep_oracle(trial, future)

    def _oracle(self, trial: Trial) -> Future[Verdict | None]:
        recorded = self._replay.verdicts.get(oracles.key_of(trial, self.pool.environment))
        found: Future[Verdict | None] = Future()
        try:
            if recorded is None:
                return self.pool.oracle(trial.proposal.source, trial.knobs)
            found.set_result(recorded[0].verdict)
        except VortexError as error:
            found.set_exception(error)
        return found

    def _keep_oracle(self, trial: Trial, future: Future[Verdict | None]) -> None:
        key = oracles.key_of(trial, self.pool.environment)
        data = {"id": trial.id, "hash": trial.hash, "key": key}
        if key in self._replay.verdicts:
            data["from_run"] = self._replay.verdicts[key][1]
        try:
            verdict = future.result()
        except VortexError as error:
            self._append("note", {"text": f"no oracle was measured for {trial.id} {trial.proposal.name}: {error}"})
            return
        if verdict is not None:
            head, rest = split(verdict.to_json())
            self.store.append("oracle", {**data, "verdict": head}, detail={"verdict": rest})
        self.take_requests()

    def wait_for(self, slots: int) -> None:
        """Until the first `slots` slots have their verdicts."""
        while len(self.history.trials) < slots:
            self._wait(len(self.history.trials))

    def _wait(self, slot: int) -> None:
        """Until that slot has its verdict, or for a moment. Raises what an evaluation or its recording raised."""
        self.keep_status()
        landings = self._landings
        if slot >= len(self._refresh().trials) and not self._faults:
            with self._news:
                self._news.wait_for(lambda: self._landings != landings, _POLL)
        self._notice()

    def _notice(self) -> None:
        """Tells of verdicts that came in."""
        self._refresh()
        self._raise_faults()
        arrived, self._arrived = self._arrived, []
        if arrived:
            self._mirror_up()
        for trial in arrived:
            self.report("recorded", trial.proposal.name)
        if len(self._lost) >= _LOST_IN_A_ROW:
            raise VortexError(
                f"{len(self._lost)} evaluations in a row lost their worker (last: {self._lost[-1]}); see "
                f"`vortex doctor`, then go on with `vortex search --resume {called(self.config.folder)}`"
            )

    def _raise_faults(self) -> None:
        if self._faults:
            raise self._faults[0]

    # --- the record --------------------------------------------------------------------------------------------

    def stop_at_once(self) -> None:
        """After an interruption, which may have left an event half folded or mirrored: takes no verdict any more, reads
        the record anew and leaves the mirror as it is. Nothing is decided any more."""
        with self._landing:
            self._over = True
        self._mirror = None
        self.history = self.known = History()
        self.mark = Mark(0, 0.0)
        self._points.clear()
        self._refresh()
        self._arrived.clear()

    def finish(self, reason: str) -> Summary:
        self._mirror_up()
        self._append("campaign_finished", {"reason": reason})
        with suppress(VortexError):  # a damaged record is told to whoever asks
            self.keep_status()
        return Summary(self.config.name, self.config.folder, reason, self.report("finished"))

    def report(self, phase: str, current: str = "") -> ProgressState:
        state = progress(
            self.history, self.config, phase, current=current, seconds=self._seconds(), seed_structures=self._seeds,
            stopping=self._stopping(),
        )  # fmt: skip
        if self._on_progress is not None:
            self._on_progress(state)
        return state

    def keep_status(self) -> None:
        """For whoever asks while nothing happens."""
        if self._kept != self.mark:
            status.KEPT.keep(self.config.folder, self.mark, recorded(self.history, self.config))
            self._kept = self.mark

    def _stopping(self) -> bool:
        return self._interrupt is not None and self._interrupt.asked

    def _seconds(self) -> float:
        return self._before + (self._stood or time.monotonic()) - self._began

    def _append(self, kind: str, data: dict[str, Any], *, slot: int | None = None) -> None:
        self.store.append(kind, data, slot=slot)
        self._refresh()

    def _refresh(self) -> History:
        """The history with everything that was recorded since, by us, by a proposer or by an evaluation that ended."""
        for event in self.store.latest(self.mark.seq):
            self.history.add(event)
            if self.known is not self.history:
                self.known.add(event)
            self.mark = Mark(event.seq, event.time)
            if event.kind == "verdict":
                trial = self.history.at(event.data["slot"])
                self._arrived.append(trial)
                if "from_run" not in event.data:  # of a replay nothing is lost here
                    self._lost = [*self._lost, trial.head.reason] if trial.head and trial.head.status == ERROR else []
        for trial in self.history.trials[len(self._points) :]:
            assert trial.head is not None
            self._points.append(trial.head.screened)
        return self.history

    def _told(self, kind: str, data: Mapping[str, Any]) -> None:
        """Records what passes between a proposer and a language model, whose answers take their time. A record that
        cannot be written is no fault of the proposer's."""
        try:
            self._append(kind, {name: value for name, value in data.items() if name != "slot"}, slot=data["slot"])
        except Exception as error:
            self._faults.append(error)
            raise
        self.keep_status()

    def _proposer_failed(self, slot: int, proposer: str, reason: str, permanent: bool) -> None:
        self._raise_faults()
        self._append("proposer_failed", {"proposer": proposer, "reason": reason, "permanent": permanent}, slot=slot)

    def _mirror_up(self) -> None:
        """A mirror that cannot be written is given up for this session; the campaign goes on without."""
        if self._mirror is None:
            return
        try:
            self._mirror.bring_up(self.history.trials)
        except Exception as error:
            self._mirror = None
            why = one_line(error, 200)
            self._append("note", {"text": f"the copy for optuna-dashboard is not kept any longer: {why}"})


class Interrupt:
    """SIGINT, SIGTERM and SIGHUP while it is entered: the first one is noted in `asked`, the second raises. All that
    come later, or once it is `over`, do nothing: what remains to be done is short, and has to be done.

    When a terminal closes, SIGHUP may come from the system and from the shell: a second one is the same event. Who
    has it ignored (``nohup``) goes on. `told` is called at the first signal, in its handler.
    """

    def __init__(self, told: Callable[[], None] | None = None) -> None:
        self.asked, self.over, self._told = False, False, told
        self._old: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.over:
            return
        if not self.asked:
            self.asked = True
            if self._told is not None:
                self._told()
        elif number != signal.SIGHUP:
            self.over = True
            raise KeyboardInterrupt

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
            if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
                numbers.remove(signal.SIGHUP)
            for number in numbers:
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
