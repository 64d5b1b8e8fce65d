"""Vortex from Python: start or resume a campaign, open a recorded one.

    import vortexlab

    run = vortexlab.search(evaluations=20, speed="predicted")  # or vortexlab.search("campaign.toml")
    print("\\n".join(run.leaderboard().closing_lines()))
    table = run.to_pandas()
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from vortexlab.dsl.errors import VortexError

if TYPE_CHECKING:
    from vortexlab.agent.progress import OnProgress
    from vortexlab.agent.run import Run
    from vortexlab.settings import Settings


def search(
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    resume: str | None = None,
    on_progress: OnProgress | None = None,
    **settings: Unpack[Settings],
) -> Run:
    """Runs a campaign until its budget is spent and returns it, opened.

    `config` is a configuration file, or its sections as a mapping; `preset` is the name of one. `settings`, which
    override either, are the options of `vortex search` (`settings.Settings`). With `resume` (a run's name, or
    ``latest``) a recorded campaign goes on: only budget, `runs` and `cluster` may be given. The record is on disk in
    ``runs/<name>`` and survives an interruption. Raises `VortexError` for settings that are not allowed and for a
    folder or model that cannot be used.
    """
    from vortexlab.agent.campaign import Campaign
    from vortexlab.agent.run import Run
    from vortexlab.settings import RESUMED, campaign_config, llm_limits

    if resume is not None:
        said = {"config": config, "preset": preset, **settings}
        given = {name for name, value in said.items() if value not in (None, "", [], (), {})}
        others = sorted(given - RESUMED)
        if others:
            raise VortexError(f"{others[0]} does not go with resume: the run's recorded settings count; leave it out")
        limits = llm_limits(
            calls=settings.get("llm_calls"), tokens=settings.get("llm_tokens"), money=settings.get("llm_money"),
            minutes=settings.get("llm_minutes"),
        )  # fmt: skip
        campaign = Campaign.resume(
            resume, settings.get("runs") or "runs", evaluations=settings.get("evaluations"),
            hours=settings.get("hours"), llm=limits, cluster=settings.get("cluster"),
        )  # fmt: skip
    else:
        campaign = Campaign(campaign_config(config, preset=preset, **settings))
    summary = campaign.run(on_progress)
    return Run.open(summary.folder, campaign.config.runs)


def load_run(run: str | Path = "latest", runs: str | Path = "runs") -> Run:
    """Opens a recorded campaign, by name, by path, or the newest one.

    What it offers: `leaderboard()`, `to_pandas()`, `members()`, `member(id)`, `status()`. Raises `VortexError` for an
    unknown run.
    """
    from vortexlab.agent.run import Run

    return Run.open(run, runs)
