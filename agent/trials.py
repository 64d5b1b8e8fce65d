"""What the events of a campaign say: its trials, and what has been spent on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vortexlab.agent.arms import Arm
from vortexlab.agent.budget import Spent
from vortexlab.agent.events import Event, mend
from vortexlab.agent.pareto import Point
from vortexlab.agent.proposers.base import Member, Proposal
from vortexlab.agent.recorded import VERDICT, OfTrial, Recorded, head_of
from vortexlab.agent.totals import Totals
from vortexlab.dsl import parse, structure_hash
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Attr
from vortexlab.evaluator.verdict import ACCEPTED, ERROR, GATES, Head, Verdict, interned
from vortexlab.search_spaces.ablations import Ablation
from vortexlab.search_spaces.library import NAMES, source

#: The arms that are not proposers: the seeds, which come first, programs of earlier runs, new knobs for a known
#: program, and programs from outside (`vortex tell`, `vortex propose`).
SEED, MEMORY, KNOBS, HANDOFF = "seed", "memory", "knobs", "handoff"
GIVEN = (SEED, MEMORY, HANDOFF)  # no search of this campaign's own
#: What people may ask of a campaign.
REQUESTS = PROPOSE, PIN, UNPIN, PAUSE, RESUME = "propose", "pin", "unpin", "pause", "resume"


@dataclass(frozen=True)
class Trial:
    """One slot of the campaign: a proposal, its knobs and, once evaluated, its verdict.

    `hash` is the canonical hash of the bound program, `structure` the hash with knobs and numbers blanked.
    """

    slot: int
    arm: Arm
    proposal: Proposal
    hash: str
    structure: str
    verdict: OfTrial = VERDICT
    started: float = 0.0
    finished: float = 0.0

    def begun(self, when: float) -> Trial:
        return Trial(self.slot, self.arm, self.proposal, self.hash, self.structure, started=when)

    def judged(self, verdict: Recorded, when: float) -> Trial:
        return Trial(self.slot, self.arm, self.proposal, self.hash, self.structure, verdict, self.started, when)

    @property
    def id(self) -> str:
        return trial_id(self.slot)

    @property
    def knobs(self) -> Mapping[str, Attr]:
        return self.proposal.knobs

    @cached_property
    def head(self) -> Head | None:
        """What decisions need of the verdict, at hand; `verdict` is read from the record each time it is asked for."""
        return head_of(self)

    @cached_property
    def point(self) -> Point | None:
        """(speed-up, accuracy kept) of an accepted trial."""
        verdict = self.head
        if verdict is None or verdict.status != ACCEPTED or verdict.speedup is None or verdict.accuracy is None:
            return None
        return verdict.speedup.value, verdict.accuracy.value

    @cached_property
    def in_full(self) -> bool:
        """Whether this counts against the budget: it went through the last gate (some that the screen rejects do, to
        audit it), or the worker was lost over it."""
        return self.head is not None and (self.head.status == ERROR or self.head.reached.get(GATES[-1], False))


@dataclass(frozen=True)
class Opening:
    """One look at sealed contexts: for which trials, under which conditions, and what was found (by id)."""

    ids: tuple[str, ...]
    evaluation: Mapping[str, Any]
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return all(name in self.verdicts for name in self.ids)


def trial_id(slot: int) -> str:
    return f"t{slot:04d}"


@dataclass
class History:
    """Everything that decisions are made from, folded from the events one at a time.

    `trials` are the evaluated ones in slot order. `open` holds the later slots: those whose evaluation runs, or was cut
    off by a kill, and those that were faster than an earlier one; `fold` takes the latter into `trials` as soon as they
    follow on, or when it is called, where `eager` is False. `exchanges` with language models are kept for the slot that
    is being proposed only. `dropped`: by model, parameters that its endpoint refused; `untrusted`: by model,
    answers whose token counts could not be believed. `counted`: by model, tokens that its endpoint counted and tokens
    that were charged for the same answers. A request that was reserved and has no exchange counts as spent: it runs,
    or a kill cut it off. `ablations`: by trial, the program less a part, where that was explained; `ablated`: verdicts
    of these by hash, other than those of trials; `oracles`: those of the best choice of as many pages, by the
    program's hash. `latest`: the last note or failure, in words.

    What people asked for: `requests` are the ids of all that was recorded; `asked` holds the programs that they
    proposed and that have no slot yet, `pinned` the slots of members they want built upon; while `paused`, no slot is
    begun, and `idle` seconds of all sessions were spent so, or `bounding`: measuring oracles, at a session's end.
    """

    started: Mapping[str, Any] = field(default_factory=dict)
    resumed: Mapping[str, Any] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    open: dict[int, Trial] = field(default_factory=dict)
    eager: bool = True
    exchanges: list[Mapping[str, Any]] = field(default_factory=list)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    untrusted: dict[str, int] = field(default_factory=dict)
    counted: dict[str, tuple[int, int]] = field(default_factory=dict)
    failures: list[Mapping[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    latest: str = ""
    finished: str | None = None
    sessions: list[tuple[float, float]] = field(default_factory=list)
    openings: list[Opening] = field(default_factory=list)
    requests: set[str] = field(default_factory=set)
    asked: list[Mapping[str, Any]] = field(default_factory=list)
    paused: bool = False
    bounding: bool = False
    idle: float = 0.0
    ablations: dict[str, list[Ablation]] = field(default_factory=dict)
    ablated: dict[str, Verdict] = field(default_factory=dict)
    oracles: dict[str, Recorded] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)
    _pins: dict[int, bool] = field(default_factory=dict)
    _spent: Spent = field(default_factory=Spent)
    _reserved: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for trial in self.trials:
            self.totals.add(trial)

    @staticmethod
    def of(events: Iterable[Event]) -> History:
        history = History()
        for event in events:
            history.add(event)
        return history

    def add(self, event: Event) -> None:
        """Raises `VortexError` for an event that does not follow from those before it: the record is damaged."""
        try:
            self._fold(event)
        except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            reason = f" ({type(error).__name__}: {error})" if str(error) else ""
            line = f"event {event.seq}, of kind {event.kind}, does not follow from those before it{reason}"
            raise VortexError(f"run {event.run.name!r} is damaged: {line}; {mend(event.run)}") from error

    def _fold(self, event: Event) -> None:
        data = event.data
        if event.kind == "measured":  # for `Replay`
            return
        if event.kind in ("finals_opened", "final", "ablation"):  # neither a trial nor time of the campaign's work
            if event.kind == "finals_opened":
                self.openings.append(Opening(tuple(data["ids"]), data["evaluation"]))
            elif event.kind == "final":
                self.openings[-1].verdicts[data["id"]] = Verdict.from_json(event.whole()["verdict"])
            else:
                part = Ablation(data["change"], data["source"], data["knobs"], data["hash"])
                self.ablations.setdefault(data["id"], []).append(part)
                if data["verdict"] is not None:
                    self.ablated[data["hash"]] = Verdict.from_json(event.whole()["verdict"])
            return
        waited = self.paused or self.bounding
        if event.kind == "oracles_begun":
            self.bounding = True
        elif event.kind == "oracle":
            self.oracles[data["hash"]] = Recorded(event)
        elif event.kind in ("campaign_started", "campaign_resumed"):
            if event.kind == "campaign_started":
                self.started = data
            self.resumed = data
            self.finished, self.bounding = None, False
            if self.paused:
                self.paused = False
                self.notes.append("the campaign was paused when it ended; starting it again ended the pause")
            self._spent, self._reserved = self.spent(), None
            self.sessions.append((event.time, event.time))
        elif event.kind == "proposal":
            self.exchanges, self.bounding = [], False
            self.asked = [item for item in self.asked if item["hash"] != data["hash"]]
            slot = data["slot"]
            assert slot == self.next_slot
            self.open[slot] = Trial(
                slot,
                Arm(*map(interned, data["arm"])),
                Proposal.from_json(data["proposal"]),
                interned(data["hash"]),
                interned(data["structure"]),
            )
        elif event.kind == "trial_started":
            self.open[data["slot"]] = self.open[data["slot"]].begun(event.time)
        elif event.kind == "verdict":
            slot = data["slot"]
            self.open[slot] = trial = self.open[slot].judged(Recorded(event), event.time)
            if trial.head is not None and trial.head.status == ERROR:
                self.latest = f"{trial.id} {trial.proposal.name}: {trial.head.reason}"
            if self.eager:
                self.fold()
        elif event.kind == "reserved":
            self._spent, self._reserved = self.spent(), data
        elif event.kind == "exchange":
            self._exchange(data)
        elif event.kind == "proposer_failed":
            self.failures.append({**data, "session": len(self.sessions)})
            self.latest = f"{data['proposer']}: {data['reason']}"
        elif event.kind == "request":
            self._request(data)
        elif event.kind == "note":
            self.notes.append(data["text"])
            self.latest = data["text"]
        elif event.kind == "campaign_finished":
            self.finished = data["reason"]
        begin, end = self.sessions[-1]
        if waited:
            self.idle += event.time - end
        self.sessions[-1] = (begin, event.time)

    def fold(self, until: int | None = None) -> None:
        """Takes open slots that have their verdict into `trials`, in order: those below `until`, or all that follow."""
        while until is None or len(self.trials) < until:
            trial = self.open.get(len(self.trials))
            if trial is None or trial.head is None:
                return
            del self.open[trial.slot]
            self.trials.append(trial)
            self.totals.add(trial)
            if trial.slot in self._pins:
                self.totals.pin(trial.slot, self._pins.pop(trial.slot))

    @property
    def next_slot(self) -> int:
        return len(self.trials) + len(self.open)

    def at(self, slot: int) -> Trial:
        """The trial of a slot that was begun."""
        return self.trials[slot] if slot < len(self.trials) else self.open[slot]

    @property
    def running(self) -> list[Trial]:
        """Slots that were begun and have no verdict, the oldest first."""
        return [trial for _, trial in sorted(self.open.items()) if trial.head is None]

    @property
    def evaluated(self) -> int:
        return self.totals.in_full.total()

    @property
    def seconds(self) -> float:
        """Wall clock of all sessions up to their last event, pauses aside."""
        return sum(end - begin for begin, end in self.sessions) - self.idle

    @property
    def pinned(self) -> list[int]:
        """Slots of pinned members, in order."""
        return sorted(self.totals.pinned)

    def frontier(self) -> list[Trial]:
        """Accepted trials on the Pareto frontier by point estimate, fastest first."""
        return list(self.totals.front)

    def gains(self) -> list[float]:
        """What each trial added to the hypervolume when it came."""
        return self.totals.gains

    def hashes(self) -> AbstractSet[str]:
        """Of all programs that have a slot."""
        if not self.open:
            return self.totals.hashes
        return self.totals.hashes | {trial.hash for trial in self.open.values()}

    def members(self) -> list[Member]:
        """The trials as proposers see them."""
        return list(self.totals.members)

    def _request(self, data: Mapping[str, Any]) -> None:
        self.requests.add(data["id"])
        if "refused" in data:
            self.notes.append(data["refused"])
            self.latest = data["refused"]
        elif data["kind"] == PROPOSE:
            self.asked.append(data["program"])
        elif data["kind"] in (PIN, UNPIN):
            slot, on = _slot(data["trial"]), data["kind"] == PIN
            if slot is not None and slot < len(self.trials):
                self.totals.pin(slot, on)
            elif slot is not None:  # not folded yet
                self._pins[slot] = on
        else:
            self.paused = data["kind"] == PAUSE

    def _exchange(self, data: Mapping[str, Any]) -> None:
        self.exchanges.append(data)
        self._spent, self._reserved = self._spent.plus(data), None
        model = data["request"]["model"]
        usage = data.get("usage")
        if isinstance(usage, (list, tuple)) and all(isinstance(item, int) and item >= 0 for item in usage):
            known, charged = self.counted.get(model, (0, 0))
            self.counted[model] = known + sum(usage), charged + int(data.get("tokens", 0))
        if data.get("drop"):
            self.dropped.setdefault(model, []).append(data["drop"])
        if not data.get("trusted", True):
            self.untrusted[model] = self.untrusted.get(model, 0) + 1

    def spent(self) -> Spent:
        """What language models have cost, or may have."""
        return self._spent if self._reserved is None else self._spent.plus(self._reserved)

    def stopped(self) -> dict[str, str]:
        """Proposers that are not asked any more in the last session, and why."""
        now = len(self.sessions)
        return {
            item["proposer"]: item["reason"] for item in self.failures if item["permanent"] and item["session"] == now
        }

    def remarks(self) -> list[str]:
        """What is to be known about the endpoints that were asked."""
        refused = [
            f"the endpoint of {model} refuses {', '.join(dict.fromkeys(names))} and is asked without"
            for model, names in self.dropped.items()
        ]
        charged = [
            f"{tokens:,} tokens were charged for answers of {model} that its endpoint counted {known:,} for: each is "
            "charged the most that it can have cost, unless a table of models says trust_usage = true"
            for model, (known, tokens) in self.counted.items() if 2 * known < tokens
        ]  # fmt: skip
        return refused + charged + [
            f"{count} answers of {model} came without usable token counts; each was charged the most that it can have "
            "cost: raise --llm-tokens or --llm-money where that is too cautious"
            for model, count in self.untrusted.items()
        ]

    def find(self, identifier: str) -> Trial:
        """The trial called `t0007`, `t7` or `7`. Raises `VortexError` for an unknown one."""
        slot = _slot(identifier)
        if slot is not None and slot < len(self.trials):
            return self.trials[slot]
        known = f"ids go from {self.trials[0].id} to {self.trials[-1].id}" if self.trials else "there are none yet"
        raise VortexError(f"there is no trial {identifier!r} in this run; {known}")


def _slot(identifier: str) -> int | None:
    digits = identifier.strip().removeprefix("t")
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 10 else None


def known_structures(history: History) -> frozenset[str]:
    """Structures of the published programs, as they were when the campaign began: a program of these is not new."""
    recorded = history.started.get("seed_structures")
    if recorded is not None:
        return frozenset(recorded)
    return frozenset(structure_hash(parse(source(name))) for name in NAMES)
