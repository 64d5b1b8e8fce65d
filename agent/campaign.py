"""A campaign: propose, evaluate, record, again, until the budget is spent.

One process does this (the store's lock sees to it). What is recorded is never lost and never done again; a controller
that was killed goes on where it stood, with the proposals that were running.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vortexlab.agent import status
from vortexlab.agent.arms import Arm
from vortexlab.agent.assemble import Recorder, build_proposers
from vortexlab.agent.config import CampaignConfig, check_new_name, write_settings
from vortexlab.agent.folders import resolve
from vortexlab.agent.leaderboard import BOARD, SEED
from vortexlab.agent.naming import called
from vortexlab.agent.pool import Evaluation, Here, Pool, make_pool
from vortexlab.agent.prepared import prepare
from vortexlab.agent.progress import OnProgress
from vortexlab.agent.proposers.base import Member, Proposal, Proposer
from vortexlab.agent.session import Interrupt, Session, Summary
from vortexlab.agent.standings import leaderboard
from vortexlab.agent.store import Store, exists
from vortexlab.agent.trials import HANDOFF, History, known_structures
from vortexlab.dsl.errors import VortexError

#: Slots begun for each evaluation that a cluster can run: while one is awaited, the others have work.
_QUEUED = 2


class Campaign:
    """The campaign that `config` describes, new or, where its folder holds it already, resumed.

    Raises `VortexError` when that folder holds another campaign. `evaluator` or `pool`, and `proposers`, replace what
    the configuration asks for; the campaign closes the pool.
    """

    def __init__(
        self,
        config: CampaignConfig,
        *,
        evaluator: Evaluation | None = None,
        pool: Pool | None = None,
        proposers: Callable[[Recorder, History], list[Proposer]] | None = None,
    ):
        if not config.name:
            config = replace(config, name=_free_name(Path(config.runs)))
        if exists(config.folder):
            with Store.read(config.folder) as store:
                recorded = CampaignConfig.recorded(History.of(store.events()).resumed["config"], config.folder)
            if config.parallel == 0:
                config = replace(config, parallel=recorded.parallel)
            differences = recorded.differences(config)
            if differences:
                raise VortexError(
                    f"run {config.name!r} exists with other settings ({differences[0]}); go on with "
                    f"--resume {called(config.folder)}, or name another"
                )
        else:
            check_new_name(config.name)
            if config.replay:
                resolve(config.replay, config.runs)
        self.config = config
        self._pool = Here(evaluator) if evaluator is not None else pool
        self._proposers = proposers

    @staticmethod
    def resume(
        name: str = "latest",
        runs: str | Path = "runs",
        *,
        evaluations: int | None = None,
        hours: float | None = None,
        llm: Mapping[str, Any] | None = None,
        cluster: str | None = None,
        evaluator: Evaluation | None = None,
        pool: Pool | None = None,
    ) -> Campaign:
        """The recorded campaign, with its budget or another one (`llm`: limits of its language models), where it ran
        or on another `cluster`.

        Raises `VortexError` for an unknown run."""
        folder = resolve(name, runs)
        with Store.read(folder) as store:
            config = CampaignConfig.recorded(History.of(store.events()).resumed["config"], folder)
        config = replace(config, runs=str(folder.parent)).with_budget(evaluations, hours, llm)
        if cluster is not None:
            config = replace(config, cluster=cluster)
        return Campaign(config, evaluator=evaluator, pool=pool)

    def run(self, on_progress: OnProgress | None = None, on_stopping: Callable[[], None] | None = None) -> Summary:
        """Works until the budget is spent or SIGINT, SIGTERM or SIGHUP comes.

        The first signal lets the running evaluations finish, the second gives them up (they are done again on resume);
        `on_stopping` is called in the handler of the first, so it may do next to nothing.
        Between two slots it takes what people ask for (`agent.inbox`), and waits while they want it paused.
        Raises `VortexError` when the folder, the disk or the evaluator fails; what is recorded stays.
        """
        with self._session(on_progress) as session, Interrupt(on_stopping) as interrupt:
            try:
                reason = session.work(interrupt)
                interrupt.over = True
            except KeyboardInterrupt:
                session.stop_at_once()
                return session.finish("stopped at once; what was running is done again on resume")
            summary = session.finish(reason)
            with suppress(VortexError):  # a damaged record is told to whoever asks for the leaderboard
                board = partial(leaderboard, self.config.name, session.history, seed=SEED)
                BOARD.kept(self.config.folder, session.mark, board)
            return summary

    def submit(self, proposal: Proposal, on_progress: OnProgress | None = None) -> Member:
        """Evaluates one program from outside in the next slot, within the budget, and returns it as a member.

        A program that was evaluated already is not evaluated again. Raises `VortexError` when it is no program or
        the budget is spent.
        """
        made = prepare(proposal, Arm(HANDOFF, proposal.operator))
        with self._session(on_progress) as session:
            session.take_up()
            session.wait_for(session.history.next_slot)
            session.known.fold()
            trial = next((trial for trial in session.history.trials if trial.hash == made.hash), None)
            if trial is None:
                spent = session.spent()
                if spent:
                    raise VortexError(
                        f"the budget of run {self.config.name!r} is spent ({spent}); raise it: "
                        f"`vortex search --resume {called(self.config.folder)} --evaluations N`"
                    )
                slot = session.begin(made)
                session.wait_for(slot + 1)
                trial = session.history.trials[slot]
            session.finish(f"{trial.id} was told")
            member = next(member for member in session.history.members() if member.id == trial.id)
            return replace(member, limits=dict(member.limits))  # read while the store is open

    @contextmanager
    def _session(self, on_progress: OnProgress | None) -> Iterator[Session]:
        pool = self._pool or make_pool(self.config, _environment(self.config.folder))
        try:
            if self.config.parallel == 0:
                beside = _QUEUED * pool.width if self.config.cluster else 1
                self.config = replace(self.config, parallel=beside)
            with _opened(self.config, pool.environment) as store:
                try:
                    yield Session(self.config, store, pool, self._proposers or self._own_proposers, on_progress)
                finally:
                    pool.close()  # before the store: nothing arrives afterwards
        finally:
            pool.close()

    def _own_proposers(self, record: Recorder, history: History) -> list[Proposer]:
        return build_proposers(self.config, record, history)


def _environment(folder: Path) -> str:
    """The conditions under which a recorded campaign was measured; empty for a new one."""
    if not exists(folder):
        return ""
    with Store.read(folder) as store:
        return str(store.first().data["environment"])


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
    write_settings(config.folder, config.to_json())
    for derived in (BOARD, status.KEPT):
        derived.tidy(config.folder)
    return store


def _free_name(runs: Path) -> str:
    stem = time.strftime("%Y%m%d-%H%M%S")
    names = (stem if number == 1 else f"{stem}-{number}" for number in range(1, 1000))
    return next(name for name in names if not (runs / name).exists())
