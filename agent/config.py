"""What a campaign is: its name and folder, its budget, who proposes, and how programs are evaluated."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import digest
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.search_spaces.library import NAMES, SEEDS, source

if TYPE_CHECKING:  # the client library of the language model is loaded by the campaigns that use one
    from vortexlab.agent.proposers.models import LLMConfig

#: ``handoff`` proposes nothing by itself: after the seeds, programs come through `vortex tell`.
PROPOSERS = ("grammar", "llm", "handoff")
SETTINGS = "config.json"
MOST_PARALLEL = 4096  # more than that know nothing of each other
#: Words for where evaluations run, beside an address.
#: What other numbers may be at most: far beyond any use.
MOST = {"seed": 2**63 - 1, "evaluations": 10**7, "hours": 1e5, "attempts": 1000.0, "oracles": 1000}
CLUSTERS = ("local", "auto")
#: Settings that a resumed campaign may change; all others make it another campaign.
_FLEXIBLE = ("runs", "evaluations", "hours", "oracles", "mirror", "cluster")
_ADDRESS = re.compile(r"(ray://)?([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")
_NEW_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class CampaignConfig:
    """The settings of one campaign.

    * `name` of the run, a folder in `runs`; empty: named after the time it starts. A folder may have been renamed, so
      any that can be printed and is one folder's will do; `check_new_name` is stricter.
    * `seed` of every random choice of the campaign (the samples of the tasks have their own, in `evaluation`).
    * The budget: `evaluations`, programs that are evaluated in full, and `hours` of work; None is no limit, and one
      of the two is needed. A program that a gate rejects before it is measured is recorded and does not count, but
      rejected and evaluated together never pass `attempts` x `evaluations`.
    * `proposers`: any of `PROPOSERS`; `llm` says which model to ask; `replay` names a run (or its folder) whose
      recorded replies stand in for the model, so that nothing is called.
    * `seeds` of the library, evaluated first with their default knobs; those with a page budget then once more for
      each of `budget_points`, choosing that share of the longest context by score.
    * `memory`: what earlier runs taught (`agent.lessons`): their frontiers are evaluated after the seeds.
    * Of what is measured after the seeds, at least `structure_share` are new structures and at least `knob_share`
      (of what that leaves) new knobs for known ones; the bandit has the rest.
    * `oracles`: of so many leading programs it is measured at the end what the best choice of as many pages would keep
      (`evaluator.oracle`); this counts against no budget.
    * `mirror`: keep a copy of the study for `optuna-dashboard`.
    * `parallel`: slots that may be open at a time, running or queued: a program is chosen without the verdicts of the
      `parallel` - 1 slots before it, so the number belongs to the campaign and a resumed one keeps it. 0: one, or
      on a cluster twice what it can run at first. `cluster`: where evaluations run: in this process (empty; with
      `parallel` above 1 as ``local``), ``local`` (Ray on the devices of this machine), ``auto`` (the Ray cluster that
      is running), or the address of one.
    """

    name: str = ""
    runs: str = "runs"
    seed: int = 0
    evaluations: int | None = 40
    hours: float | None = None
    attempts: float = 3.0
    proposers: tuple[str, ...] = ("grammar",)
    llm: LLMConfig | None = None
    replay: str = ""
    seeds: tuple[str, ...] = SEEDS
    memory: tuple[Mapping[str, Any], ...] = ()
    budget_points: tuple[float, ...] = (0.05,)
    structure_share: float = 0.6
    knob_share: float = 0.2
    oracles: int = 3
    mirror: bool = True
    parallel: int = 0
    cluster: str = ""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        for name in ("proposers", "seeds", "budget_points", "memory"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if "/" in self.name or self.name.startswith((".", "-")) or not self.name.isprintable() or self.name == "latest":
            raise VortexError(
                f"run name {self.name!r} is not usable: the name of one folder, which can be printed, does not begin "
                "with '.' or '-' and is not 'latest'"
            )
        if not self.proposers:
            raise VortexError(f"proposers must name one at least of {', '.join(PROPOSERS)}")
        for name in self.proposers:
            if name not in PROPOSERS:
                raise VortexError(f"proposer {name!r} is not one of {', '.join(PROPOSERS)}")
        for name in self.seeds:
            if name not in NAMES:
                raise VortexError(f"seed {name!r} is not one of {', '.join(NAMES)}")
        if "llm" in self.proposers and self.llm is None:
            raise VortexError("the llm proposer needs a model: give --model NAME (and --base-url for a local endpoint)")
        if self.evaluations is None and self.hours is None:
            raise VortexError("a campaign needs a budget: give --evaluations or --hours")
        if self.evaluations is not None and self.evaluations < 1:
            raise VortexError(f"evaluations must be at least 1, found {self.evaluations}")
        if self.hours is not None and not self.hours > 0:
            raise VortexError(f"hours must be above 0, found {self.hours}")
        for name, most in MOST.items():
            if (value := getattr(self, name)) is not None and not value <= most:
                raise VortexError(f"{name} must be at most {most}, found {value}")
        for name in ("seed", "oracles"):
            if getattr(self, name) < 0:
                raise VortexError(f"{name} must not be negative, found {getattr(self, name)}")
        if not 0 <= self.parallel <= MOST_PARALLEL:
            raise VortexError(f"parallel must lie in 0..{MOST_PARALLEL}, found {self.parallel}")
        if self.cluster not in ("", *CLUSTERS) and not _ADDRESS.fullmatch(self.cluster):
            raise VortexError(
                f"cluster {self.cluster!r} is none of {', '.join(CLUSTERS)} and no address, HOST:PORT or ray://HOST:PORT"
            )
        if self.attempts < 1:
            raise VortexError(f"attempts must be at least 1, found {self.attempts}")
        for name in ("structure_share", "knob_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise VortexError(f"{name} must lie in 0..1, found {getattr(self, name)}")
        if any(not 0 < share <= 1 for share in self.budget_points):
            raise VortexError(f"budget points are shares of the context in 0..1, found {self.budget_points}")

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name

    def library(self) -> dict[str, str] | None:
        """The text of every seed by name; None (all there are) without seeds."""
        return {name: source(name) for name in self.seeds} or None

    def with_budget(
        self, evaluations: int | None = None, hours: float | None = None, llm: Mapping[str, Any] | None = None
    ) -> CampaignConfig:
        """The same campaign with another budget: `evaluations` or `hours` take the place of both, as they do of the
        default one; with neither both stay. `llm`: limits of the models, of which those that are None stay.

        Raises `VortexError` for limits of language models in a campaign without any.
        """
        limits = {name: value for name, value in (llm or {}).items() if value is not None}
        if limits and self.llm is None:
            raise VortexError(f"run {self.name!r} asks no language model, so it has no budget for one to change")
        made = self if evaluations is None and hours is None else replace(self, evaluations=evaluations, hours=hours)
        return replace(made, llm=self.llm.with_limits(limits)) if self.llm and limits else made

    def differences(self, other: CampaignConfig) -> list[str]:
        """One line for each setting, the budget aside, in which `other` is another campaign."""
        mine, theirs = self.to_json(), other.to_json()
        for settings, config in ((mine, self), (theirs, other)):
            settings["llm"] = config.llm.without_limits() if config.llm else None
        lines = []
        for key in sorted(mine):
            if key == "memory" and mine[key] != theirs[key]:  # texts of programs do not belong into a message
                lines.append(f"memory is {_taught(self)} there and {_taught(other)} here")
                continue
            if key == "evaluation":
                inner = [(f"evaluation.{k}", mine[key][k], theirs[key][k]) for k in sorted(mine[key])]
            else:
                inner = [(key, mine[key], theirs[key])]
            lines += [
                f"{name} is {a!r} there and {b!r} here" for name, a, b in inner if a != b and name not in _FLEXIBLE
            ]
        return lines

    def to_json(self) -> dict[str, Any]:
        data = {item.name: getattr(self, item.name) for item in fields(self)}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}
        return {**plain, "evaluation": self.evaluation.to_json(), "llm": self.llm.to_json() if self.llm else None}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> CampaignConfig:
        """The inverse of `to_json`. Raises `VortexError` for a setting that is not ours."""
        known = {item.name for item in fields(CampaignConfig)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise VortexError(f"campaign setting {unknown[0]!r} is unknown; known: {', '.join(sorted(known))}")
        llm = data.get("llm")
        if llm is not None:
            from vortexlab.agent.proposers.models import LLMConfig

            llm = LLMConfig.from_json(llm)
        evaluation = EvaluationConfig.from_json(data.get("evaluation", {}))
        return CampaignConfig(**{**data, "evaluation": evaluation, "llm": llm})

    @staticmethod
    def recorded(data: Mapping[str, Any], folder: Path) -> CampaignConfig:
        """The settings that a campaign's record holds, with the name of its folder, which may have been renamed. A
        record of a release without parallel slots says nothing of them: it had one. Raises as `from_json`."""
        return replace(CampaignConfig.from_json({"parallel": 1, **data}), name=folder.name)


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Keeps the settings of a campaign, as JSON, beside its record, for people, scripts and a record that loses its
    first event. The record is the truth, so a disk that refuses this file changes nothing."""
    with suppress(OSError):
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def check_new_name(name: str) -> None:
    """Raises `VortexError` for a name that would need quotes in a command: no new run gets it."""
    if not _NEW_NAME.fullmatch(name):
        raise VortexError(f"run name {name!r} is not usable: letters, digits, '.', '_' and '-', 64 at most")


def _taught(config: CampaignConfig) -> str:
    """The runs that a campaign learned from, each with a digest of what they taught."""
    return ", ".join(f"{item['run']} ({digest(item)[:8]})" for item in config.memory) or "none"
