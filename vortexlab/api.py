"""Vortex from Python: start or resume a campaign, open a recorded one.

    import vortexlab

    run = vortexlab.search(evaluations=20, speed="predicted")
    print("\\n".join(run.leaderboard().closing_lines()))
    table = run.to_pandas()
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vortexlab.agent.progress import OnProgress
    from vortexlab.agent.run import Run


def search(
    *,
    name: str = "",
    runs: str | Path = "runs",
    resume: str | None = None,
    seed: int = 0,
    evaluations: int | None = None,
    hours: float | None = None,
    proposers: Iterable[str] = (),
    model: str | Iterable[str] = (),
    base_url: str | None = None,
    llm_api: str | None = None,
    llm_table: str | Path | None = None,
    llm_prices: Iterable[str] = (),
    llm_calls: int | None = None,
    llm_tokens: int | None = None,
    llm_money: float | None = None,
    llm_minutes: float | None = None,
    model_dir: str | Path | None = None,
    tasks: Iterable[str] = (),
    data: Iterable[str | Path] = (),
    sources: Iterable[str] = (),
    template: str | None = None,
    dense_floor: float | None = None,
    score: str | None = None,
    lengths: Iterable[int] = (),
    contexts: int | None = None,
    phase: str | None = None,
    speed: str | None = None,
    predict_for: str | None = None,
    device: str = "auto",
    geometry: str | None = None,
    context_cache: float | None = None,
    memory_mb: int | None = None,
    on_progress: OnProgress | None = None,
) -> Run:
    """Runs a campaign until its budget is spent and returns it, opened.

    The settings are those of `vortex search`. With `resume` (a run's name, or ``latest``) a recorded campaign goes
    on, and of the other settings only the budget and `runs` count. The record is on disk in ``runs/<name>`` and
    survives an interruption. Raises `VortexError` for settings that are not allowed and for a folder or model that
    cannot be used.
    """
    from vortexlab.agent.campaign import Campaign
    from vortexlab.agent.run import Run
    from vortexlab.settings import campaign_config, evaluation_config, llm_limits

    if resume is not None:
        limits = llm_limits(calls=llm_calls, tokens=llm_tokens, money=llm_money, minutes=llm_minutes)
        campaign = Campaign.resume(resume, runs, evaluations=evaluations, hours=hours, llm=limits)
    else:
        evaluation = evaluation_config(
            model_dir=model_dir,
            tasks=tasks,
            data=data,
            sources=sources,
            template=template,
            dense_floor=dense_floor,
            score=score,
            lengths=lengths,
            contexts=contexts,
            phase=phase,
            speed=speed,
            predict_for=predict_for,
            device=device,
            geometry=geometry,
            context_cache=context_cache,
            memory_mb=memory_mb,
        )
        campaign = Campaign(
            campaign_config(
                name=name,
                runs=runs,
                seed=seed,
                evaluations=evaluations,
                hours=hours,
                proposers=proposers,
                models=(model,) if isinstance(model, str) else model,
                base_url=base_url,
                llm_api=llm_api,
                llm_table=llm_table,
                llm_prices=llm_prices,
                llm_calls=llm_calls,
                llm_tokens=llm_tokens,
                llm_money=llm_money,
                llm_minutes=llm_minutes,
                evaluation=evaluation,
            )
        )
    summary = campaign.run(on_progress)
    return Run.open(summary.folder, runs)


def load_run(run: str | Path = "latest", runs: str | Path = "runs") -> Run:
    """Opens a recorded campaign, by name, by path, or the newest one.

    What it offers: `leaderboard()`, `to_pandas()`, `members()`, `member(id)`, `status()`. Raises `VortexError` for an
    unknown run.
    """
    from vortexlab.agent.run import Run

    return Run.open(run, runs)
