"""The finals of a campaign: its best programs once more, on sealed contexts and at other lengths.

What a search has chosen is too good on the contexts that it was chosen by. Finalists therefore answer questions drawn
from seeds that no campaign uses, at lengths that this one did not ask. Sealed contexts are good for one look: the
opening is an event of the store, written before the first of them is made, and a second one is refused unless it is
asked for, and then every row bears its number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vortexlab.agent.pool import Evaluation
from vortexlab.agent.run import Run
from vortexlab.agent.store import Store
from vortexlab.agent.trials import History, Opening, Trial
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.verdict import Verdict, split

CONTEXTS, MOST = 24, 8
SPLIT = "sealed"
_ROOM = 256  # tokens for question and answer


@dataclass(frozen=True)
class Final:
    """One finalist: `searched` is the verdict of the campaign, `verdict` that of the finals (None: not yet there).

    `opening` counts from 1; from 2 on the contexts were no longer unseen.
    """

    trial: Trial
    verdict: Verdict | None
    opening: int

    def to_json(self) -> dict[str, Any]:
        searched = self.trial.verdict
        assert searched is not None
        return {
            "id": self.trial.id,
            "name": self.trial.proposal.name,
            "opening": self.opening,
            "searched": searched.accuracy.to_json() if searched.accuracy else None,
            "verdict": self.verdict.to_json() if self.verdict else None,
        }


def final_config(config: EvaluationConfig, contexts: int = CONTEXTS, lengths: Sequence[int] = ()) -> EvaluationConfig:
    """The conditions of the finals of a campaign under `config`: sealed seeds, half and one and a half times its
    lengths (those of the user's own data stay), and every question asked of everybody. The margin is the campaign's.

    Lengths that the tasks or the model do not allow are left out. Raises `VortexError` when none is left, and for given
    ones that the campaign asked or that are not allowed.
    """
    from vortexlab.evaluator.tasks import TASKS  # loads torch, which reading a record does without

    names = [name for name in config.tasks or (() if config.data else TASKS) if name in TASKS]
    shortest = max((TASKS[name].shortest for name in names), default=0)
    longest = _positions(config.model) - _ROOM
    own = set(config.lengths)
    if lengths:
        if same := sorted(own & set(lengths)):
            raise VortexError(f"finals are about other lengths than the campaign's; leave {same[0]} out")
        chosen = tuple(lengths)
    elif config.data:
        chosen = config.lengths
    else:
        other = sorted({n * part // 2 for n in own for part in (1, 3)} - own)
        chosen = tuple(n for n in other if shortest <= n <= longest)
    bad = [n for n in chosen if not shortest <= n <= longest]
    if bad or not chosen:
        raise VortexError(
            f"finals need contexts of {shortest} to {longest} tokens, which tasks and model allow, and not of the "
            f"campaign's lengths; {f'{bad[0]} is not: ' if bad else ''}give others with --lengths"
        )
    return replace(
        config, split=SPLIT, lengths=chosen, contexts=contexts, stop_below=0.0, promoted=1.0, audit_share=1.0
    )


def _positions(model: str) -> int:
    """Tokens that the model folder promises to take."""
    found = json.loads((Path(model) / "config.json").read_text())
    return int({**found.get("text_config", {}), **found}.get("max_position_embeddings", 1 << 30))


def finalists(run: Run, ids: Iterable[str] = ()) -> list[Trial]:
    """The named trials, or the frontier, by shrunk accuracy, `MOST` of it at most.

    Raises `VortexError` for unknown or repeated ids, trials that were not accepted, and an empty frontier.
    """
    chosen = [run.history.find(item) for item in ids]
    if not chosen:
        front = sorted(run.leaderboard().frontier, key=lambda entry: -entry.shrunk.value)[:MOST]
        chosen = [run.history.find(entry.id) for entry in front]
    if len({trial.slot for trial in chosen}) < len(chosen):
        raise VortexError("a finalist is named twice; name every trial once")
    for trial in chosen:
        if trial.point is None:
            raise VortexError(f"{trial.id} was not accepted, so it is no finalist; see `vortex show {trial.id}`")
    if not chosen:
        raise VortexError(f"run {run.name!r} has no frontier, so there are no finals")
    return chosen


def recorded(run: Run) -> list[Final]:
    """The rows of all openings, in order."""
    return [
        Final(run.history.find(name), opening.verdicts.get(name), number)
        for number, opening in enumerate(run.history.openings, 1)
        for name in opening.ids
    ]


def hold(
    run: Run,
    ids: Iterable[str] = (),
    *,
    config: EvaluationConfig | None = None,
    again: bool = False,
    evaluator: Callable[[EvaluationConfig], Evaluation] | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> list[Final]:
    """Opens the sealed contexts, or goes on with an opening that was interrupted, and returns its rows.

    `config` is by default `final_config` of the campaign. Raises `VortexError` when they were opened before, unless
    `again`; when the run is being written; and for finalists or conditions that cannot be.
    """
    names = list(ids)
    with Store.write(run.folder) as store:
        history = run.history
        history.openings[:] = History.of(store.events()).openings  # what was opened since the run was read counts
        opening = history.openings[-1] if history.openings else None
        if opening is not None and not opening.is_complete:
            if names and [history.find(name).id for name in names] != list(opening.ids):
                raise VortexError(
                    f"an opening for {' '.join(opening.ids)} was interrupted; go on with it first, without ids"
                )
            config = EvaluationConfig.from_json(opening.evaluation)
        else:
            if opening is not None and not again:
                raise VortexError(
                    f"the sealed contexts of run {run.name!r} were opened before, for {' '.join(opening.ids)}; "
                    "what is chosen now may have seen them: give --again to look once more, which every row will say"
                )
            chosen = tuple(trial.id for trial in finalists(run, names))
            config = config or final_config(run.config.evaluation)
            opening = Opening(chosen, config.to_json())
            history.openings.append(opening)
            number = len(history.openings)
            store.append("finals_opened", {"ids": chosen, "evaluation": opening.evaluation, "opening": number})
        work = (evaluator or _evaluator)(config)
        try:
            for trial in map(history.find, opening.ids):
                if trial.id in opening.verdicts:
                    continue
                if on_progress is not None:
                    on_progress(f"{trial.id} {trial.proposal.name}")
                verdict = work.evaluate(trial.proposal.source, dict(trial.knobs))
                head, rest = split(verdict.to_json())
                found = {"id": trial.id, "opening": len(history.openings), "verdict": head}
                store.append("final", found, detail={"verdict": rest})
                opening.verdicts[trial.id] = verdict
        finally:
            work.close()
    return [row for row in recorded(run) if row.opening == len(history.openings)]


def _evaluator(config: EvaluationConfig) -> Evaluation:
    from vortexlab.evaluator.evaluator import Evaluator

    return Evaluator(config)
