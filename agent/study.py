"""Knob values from Optuna, by ask and tell with two objectives; the one file that knows Optuna.

The study holds nothing but trials, each added once, and every `ask` has a sampler of its own, seeded from
(campaign seed, slot): a resumed campaign is asked exactly what an uninterrupted one would have been.

Structure never enters the study. A knob that means the same in every program (see `search_spaces.knobs`) is one
parameter for all of them; any other is a parameter of its structure and form, ``p/<structure>/<name>:<form>``, since
programs of one structure may declare a name with other choices or on another scale.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from vortexlab.agent.pareto import Point, frontier
from vortexlab.agent.trials import Trial
from vortexlab.dsl import declared_knobs
from vortexlab.dsl.ir import Attr, Knob, KnobRef, Program, digest
from vortexlab.evaluator.verdict import ERROR
from vortexlab.search_spaces.knobs import SHARED, SharedKnob, is_shared
from vortexlab.search_spaces.parsed import parsed

MIRROR = "study.journal"
_DIRECTIONS = [StudyDirection.MAXIMIZE, StudyDirection.MAXIMIZE]  # speed-up, accuracy kept
_METRICS = ["speedup", "accuracy"]
_STARTUP = 10  # trials drawn at random before the sampler trusts its model; the seeds fill them
#: A suggestion costs more the more trials the sampler sees: the latest, `_LATEST` + `_STEP` at most, and the frontier.
_LATEST, _STEP = 400, 100
_BATCH = 64  # trials that are mirrored at once
_FEWEST = 20  # accepted trials that must have a knob before anything is said of it
MOST = 300  # accepted trials that importances are computed from, spread evenly over the campaign
PAGE_COUNTS = ("budget", "recent", "random_pages")
_CONSTRAINT = "rejected"  # above 0: the gates said no

optuna.logging.set_verbosity(optuna.logging.ERROR)


def derive(seed: int, *path: int | str) -> int:
    """A 32-bit seed for one purpose, from the campaign's seed."""
    return int(digest([seed, *path])[:8], 16)


def parameter(knob: Knob, structure: str) -> str:
    if is_shared(knob):
        return knob.name
    form = f"{knob.kind}-{digest(list(knob.choices))[:4]}" if knob.choices else knob.kind + "-log" * knob.log
    return f"p/{structure[:8]}/{knob.name}:{form}"


def distribution(knob: Knob) -> BaseDistribution:
    if knob.kind == "choice":
        return CategoricalDistribution(knob.choices)
    if knob.kind == "bool":
        return CategoricalDistribution((False, True))
    assert knob.low is not None and knob.high is not None
    if knob.kind == "int":
        low, high = int(knob.low), int(knob.high)
        return IntDistribution(low, high, log=knob.log, step=1 if knob.log else int(knob.step or 1))
    step = None if knob.log or not knob.step else float(knob.step)
    return FloatDistribution(float(knob.low), float(knob.high), log=knob.log, step=step)


def narrowed(knob: Knob, page: int, tokens: int) -> Knob:
    """A shared knob that counts pages, kept to half of a context of `tokens`: more is all but dense."""
    if knob.kind != "int" or knob.name not in PAGE_COUNTS or not is_shared(knob):
        return knob
    assert knob.low is not None and knob.high is not None
    return replace(knob, high=max(int(knob.low), min(int(knob.high), tokens // (2 * page))))


class Tuner:
    """The study of one campaign in memory, kept from one `ask` to the next, of its latest trials and its frontier."""

    def __init__(self) -> None:
        self._study = optuna.create_study(directions=_DIRECTIONS)
        self._start = self._added = 0

    def ask(
        self, trials: Sequence[Trial], program: Program, structure: str, *, tokens: int, seed: int, slot: int,
        attempt: int = 0,
    ) -> dict[str, Attr]:  # fmt: skip
        """Values for the knobs of one unbound program, given everything that was evaluated.

        `trials` begin with those of earlier calls. `tokens` is the longest context; `attempt` draws again for the
        same slot.
        """
        self._bring_up(trials)
        self._study.sampler = TPESampler(seed=derive(seed, "knobs", slot, attempt), n_startup_trials=_STARTUP)
        trial = self._study.ask()
        try:
            return suggested(trial, program, structure, tokens=tokens)
        finally:  # the trial that comes of it is added once it is evaluated; samplers skip this one
            self._study.tell(trial, state=TrialState.FAIL)

    def _bring_up(self, trials: Sequence[Trial]) -> None:
        """What the study holds follows from the trials alone, not from the calls that there were before."""
        start = max(0, len(trials) // _STEP * _STEP - _LATEST)
        if start != self._start:
            self._study = optuna.create_study(directions=_DIRECTIONS)
            old = [trial for trial in trials[:start] if trial.point]
            front = sorted(frontier([trial.point for trial in old if trial.point]))
            self._study.add_trials([frozen(old[i]) for i in front])
            self._start = self._added = start
        self._study.add_trials([frozen(trial) for trial in trials[self._added :]])
        self._added = len(trials)


def suggested(trial: optuna.Trial, program: Program, structure: str, *, tokens: int) -> dict[str, Attr]:
    """Values for the knobs of one unbound program, as a trial of a study suggests them."""
    with warnings.catch_warnings():
        # The ranges of a shared knob may differ between programs; Optuna remarks on it at every suggestion.
        warnings.simplefilter("ignore")
        return _fill(program, tokens, lambda knob: _suggest(trial, parameter(knob, structure), distribution(knob)))


def draw(program: Program, rng: random.Random, *, tokens: int) -> dict[str, Attr]:
    """Values at random, uniform in a knob's own scale: when the sampler only repeats itself."""
    return _fill(program, tokens, lambda knob: _uniform(distribution(knob), rng))


def _fill(program: Program, tokens: int, value: Callable[[Knob], Any]) -> dict[str, Attr]:
    """The page size first, since the ranges of what counts pages follow from it."""
    page_knob = program.page.name if isinstance(program.page, KnobRef) else ""
    values: dict[str, Attr] = {}
    for name, knob in sorted(program.knobs.items(), key=lambda item: (item[0] != page_knob, item[0])):
        page = values.get(page_knob, 1) if page_knob else program.page
        assert isinstance(page, int)
        values[name] = knob.check(value(narrowed(knob, page, tokens)))
    return values


def _suggest(trial: optuna.Trial, name: str, space: BaseDistribution) -> Any:
    if isinstance(space, CategoricalDistribution):
        return trial.suggest_categorical(name, space.choices)
    if isinstance(space, IntDistribution):
        return trial.suggest_int(name, space.low, space.high, log=space.log, step=space.step)
    assert isinstance(space, FloatDistribution)
    return trial.suggest_float(name, space.low, space.high, log=space.log, step=space.step)


def _uniform(space: BaseDistribution, rng: random.Random) -> Any:
    if isinstance(space, CategoricalDistribution):
        return rng.choice(space.choices)
    assert isinstance(space, (IntDistribution, FloatDistribution))
    if space.log:
        value = space.low * (space.high / space.low) ** rng.random()
    else:
        value = space.low + (space.high - space.low) * rng.random()
        if space.step:
            value = space.low + round((value - space.low) / space.step) * space.step
    value = min(max(value, space.low), space.high)
    return round(value) if isinstance(space, IntDistribution) else value


@dataclass(frozen=True)
class Importance:
    """How much of what tells the best programs from the others a shared knob has, as a share over all such knobs, for
    each objective; from `trials` accepted ones. `meaning` includes the knob's unit."""

    knob: str
    meaning: str
    trials: int
    speedup: float
    accuracy: float


def importances(trials: Sequence[Trial]) -> list[Importance]:
    """Of every shared knob that at least `_FEWEST` accepted trials have with more than one value, the largest first.

    Of more than `MOST` accepted trials every so many-th counts: each text has to be read for it. PED-ANOVA (Watanabe
    et al., arXiv 2304.10255), which takes each knob by itself: programs have different ones.
    """
    with_knob: dict[str, list[tuple[Any, Point]]] = {}
    accepted = [trial for trial in trials if trial.point is not None]
    for trial in accepted[:: -(-len(accepted) // MOST) or 1]:
        for name, knob in declared_knobs(trial.proposal.source).items():
            if is_shared(knob) and name in trial.knobs and trial.point:
                with_knob.setdefault(name, []).append((trial.knobs[name], trial.point))
    found: dict[str, list[float]] = {}
    for name, own in with_knob.items():
        values = [value for value, _ in own]
        if len(own) >= _FEWEST and len(set(values)) > 1:
            study, space = optuna.create_study(directions=_DIRECTIONS), _spanning(SHARED[name], values)
            study.add_trials([
                create_trial(values=list(point), params={name: value}, distributions={name: space})
                for value, point in own
            ])  # fmt: skip
            found[name] = [_importance(study, name, objective) for objective in range(len(_DIRECTIONS))]
    totals = [sum(values) or 1.0 for values in zip(*found.values(), strict=True)]
    rows = []
    for name, values in found.items():
        speedup, accuracy = (value / total for value, total in zip(values, totals, strict=True))
        rows.append(Importance(name, SHARED[name].meaning, len(with_knob[name]), speedup, accuracy))
    return sorted(rows, key=lambda row: (-max(row.speedup, row.accuracy), row.knob))


def _spanning(knob: SharedKnob, values: Sequence[Any]) -> BaseDistribution:
    """The range of the values: programs may declare a shared knob over different ones."""
    if knob.choices:
        return CategoricalDistribution(knob.choices)
    kind = IntDistribution if knob.kind == "int" else FloatDistribution
    return kind(min(values), max(values), log=knob.log)


def _importance(study: optuna.Study, name: str, objective: int) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an experimental evaluator
        return get_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(), params=[name], normalize=False,
            target=lambda trial: -trial.values[objective],  # it takes the lowest for the best
        )[name]  # fmt: skip


def frozen(trial: Trial) -> FrozenTrial:
    """A trial as Optuna keeps it.

    Rejected programs are complete and infeasible, with the worst values where nothing was measured, so that the
    sampler learns the border; a lost worker says nothing about the knobs and is a failed trial, which samplers skip.
    """
    verdict = trial.head
    assert verdict is not None
    params, distributions = {}, {}
    for name, knob in parsed(trial.proposal.source).knobs.items():
        if name in trial.knobs:
            key = parameter(knob, trial.structure)
            params[key], distributions[key] = trial.knobs[name], distribution(knob)
    attrs: dict[str, Any] = {
        "slot": trial.slot, "id": trial.id, "program": trial.proposal.name, "structure": trial.structure,
        "proposer": trial.arm.proposer, "operator": trial.arm.operator, "status": verdict.status,
        "gate": verdict.gate, "density": verdict.density,
    }  # fmt: skip
    if verdict.status == ERROR:
        return create_trial(state=TrialState.FAIL, params=params, distributions=distributions, user_attrs=attrs)
    point = trial.point
    return create_trial(
        state=TrialState.COMPLETE,
        values=list(point or (0.0, 0.0)),
        params=params,
        distributions=distributions,
        user_attrs=attrs,
        constraints={_CONSTRAINT: 0.0 if point else 1.0},
    )


class Mirror:
    """A copy of the study in a file of its own, for `optuna-dashboard RUN/study.journal`.

    It may be thrown away at any time, and every session begins it afresh: a kill may have torn its last line.
    """

    def __init__(self, folder: Path, name: str):
        self.file, self.name = folder / MIRROR, name
        self._end: _End | None = None
        self._added = 0

    def bring_up(self, trials: Sequence[Trial]) -> None:
        """Adds what is missing; `trials` begin with those of earlier calls.

        Raises whatever Optuna or the disk raise; the caller decides that a mirror is not worth a campaign.
        """
        self._end = self._end or self._begin()
        for at in range(self._added, len(trials), _BATCH):
            batch = trials[at : at + _BATCH]
            self._end.forget()
            study = optuna.load_study(study_name=self.name, storage=JournalStorage(self._end))
            study.add_trials([frozen(trial) for trial in batch])
            self._added = at + len(batch)

    def _begin(self) -> _End:
        # The lock is left behind by a kill. Nobody else writes here: the campaign's own lock sees to that.
        for file in (self.file, self.file.with_name(f"{MIRROR}.lock")):
            file.unlink(missing_ok=True)
        end = _End(self.file)
        study = optuna.create_study(storage=JournalStorage(end), study_name=self.name, directions=_DIRECTIONS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names of metrics are marked experimental
            study.set_metric_names(_METRICS)
        end.begun()
        return end


class _End(BaseJournalBackend):
    """A journal as whoever only adds to it needs to know it: how it begins, and what was added of late. Optuna keeps
    every trial of a storage in memory; those of this one can be forgotten, as their numbers are not in the file."""

    def __init__(self, file: Path):
        self._file = JournalFileBackend(str(file))
        self._logs: list[dict[str, Any]] = []
        self._begins = 0

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self._file.append_logs(logs)
        self._logs += logs

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        return iter(self._logs[log_number_from:])

    def begun(self) -> None:
        """What there is now is how the journal begins."""
        self._begins = len(self._logs)

    def forget(self) -> None:
        """What was added after that; storages of before are of no use any more."""
        del self._logs[self._begins :]


class _ReadOnly(JournalFileBackend):
    """A journal that others write: it is read, and neither a click nor a kill of its reader changes it."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        raise RuntimeError("this copy of a campaign is for reading")


def read_only(file: Path) -> JournalStorage:
    """The storage of a mirror, for whoever shows it."""
    return JournalStorage(_ReadOnly(str(file)))


def mirrored(file: Path) -> int:
    """How many trials a mirror holds; -1 where there is none that can be read."""
    if not file.is_file():
        return -1
    try:
        storage = read_only(file)
        (study,) = storage.get_all_studies()
        return storage.get_n_trials(study._study_id)
    except Exception:  # torn by a kill, cut off by a copy, or no journal at all
        return -1
