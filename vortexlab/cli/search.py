"""`vortex search`: start, resume or replay a campaign."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vortexlab import settings
from vortexlab.cli import options
from vortexlab.cli.output import AsJson, NewRuns, print_json, require_runs
from vortexlab.dsl.errors import VortexError

if TYPE_CHECKING:
    from vortexlab.agent.campaign import Campaign

#: What may be given beside --resume and --replay; everything else is recorded with the run.
_WITH_RESUME = {"resume", "log", "as_json", *settings.RESUMED}
_WITH_REPLAY = {"replay", "name", "runs", "evaluations", "hours", "cluster", "log", "as_json"}
#: Parameters that are no settings of a campaign. The others have the names of `settings.Settings`.
_CONTROL = {"config", "preset", "resume", "replay", "log", "as_json"}


def search(
    context: typer.Context,
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="A configuration, TOML (`vortex init`); flags override it.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="quick|night|cluster", help="A configuration with a name; flags override it.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the run, a folder in --runs; by default the time.")] = "",
    runs: NewRuns = "runs",
    seed: Annotated[int, typer.Option(help="Seed of every random choice of the campaign.")] = 0,
    evaluations: Annotated[int | None, typer.Option(help="Budget: programs evaluated in full.")] = None,
    hours: Annotated[float | None, typer.Option(help="Budget: hours of work.")] = None,
    proposers: Annotated[
        list[str] | None, typer.Option("--proposer", help="grammar, llm or handoff; may be repeated.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="Language model that proposes; may be repeated.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Its endpoint, if not OpenAI's own.")] = None,
    llm_api: Annotated[str | None, typer.Option(help="chat (Chat Completions) or responses.")] = None,
    llm_table: Annotated[
        str | None, typer.Option(metavar="FILE", help="Settings and prices of models, TOML or JSON.")
    ] = None,
    llm_prices: Annotated[
        list[str] | None,
        typer.Option("--llm-price", metavar="MODEL=IN,OUT", help="Prices of a million tokens read, written."),
    ] = None,
    llm_calls: Annotated[int | None, typer.Option(help="Most requests to all models.")] = None,
    llm_tokens: Annotated[int | None, typer.Option(help="Most tokens for all models, prompts included.")] = None,
    llm_money: Annotated[float | None, typer.Option(help="Most money for all models, as their prices have it.")] = None,
    llm_minutes: Annotated[float | None, typer.Option(help="Most minutes of waiting for models.")] = None,
    llm_label: Annotated[str | None, typer.Option(help="Shown beside their programs, e.g. `authored`.")] = None,
    memory: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="Learn from this run: its frontier comes after the seeds.")
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(help="Slots open at a time; 0: one, or twice what the cluster can run.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="local|auto|ADDRESS", help="Evaluate through Ray, here or on a cluster.")
    ] = None,
    model_dir: options.ModelDir = None,
    tasks: options.Tasks = None,
    data: options.Data = None,
    sources: options.Source = None,
    template: options.Template = None,
    dense_floor: options.DenseFloor = None,
    score: options.Score = None,
    lengths: options.Lengths = None,
    contexts: options.Contexts = None,
    phase: options.Phase = None,
    speed: options.Speed = None,
    predict_for: options.PredictFor = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    geometry: options.Geometry = None,
    batch_tokens: options.BatchTokens = None,
    threads: options.Threads = None,
    context_cache: options.ContextCache = None,
    memory_mb: options.MemoryMb = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Go on with this run, or `latest`.")] = None,
    replay: Annotated[
        str | None, typer.Option(metavar="RUN", help="Repeat this run from its recorded replies, calling nothing.")
    ] = None,
    log: Annotated[
        str | None, typer.Option(metavar="FILE", help="Add every change of progress as a line of JSON; - for here.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Run a campaign: propose programs, measure them, keep the Pareto frontier.

    Without options this works on any machine: published programs and their mutations, evaluated on the shipped
    reference model. `vortex init` writes a configuration to start from. Ctrl-C ends a campaign after what is running,
    a second one at once; `--resume` goes on.
    """
    from vortexlab.agent.campaign import Campaign
    from vortexlab.agent.run import Run
    from vortexlab.cli.live import Display

    given = options.given(context)
    if resume is not None:
        _only(context, given, _WITH_RESUME, "--resume", "the run's recorded settings count")
        if "runs" in given:
            require_runs(runs)
        limits = settings.llm_limits(calls=llm_calls, tokens=llm_tokens, money=llm_money, minutes=llm_minutes)
        campaign = Campaign.resume(resume, runs, evaluations=evaluations, hours=hours, llm=limits, cluster=cluster)
    elif replay is not None:
        _only(context, given, _WITH_REPLAY, "--replay", "the recorded settings are repeated")
        recorded = Run.open(replay, runs)
        again = settings.replay_config(recorded.config, recorded.folder, name=name, runs=runs)
        again = replace(again, cluster=recorded.config.cluster if cluster is None else cluster)
        campaign = Campaign(again.with_budget(evaluations, hours))
    else:
        said = {name: context.params[name] for name in given - _CONTROL}
        if "tasks" in said:
            said["tasks"] = options.words(tasks)
        if "lengths" in said:
            said["lengths"] = options.numbers("--lengths", lengths)
        campaign = Campaign(settings.campaign_config(config, preset=preset, **said))
    with Display(campaign.config, log) as display:
        summary = campaign.run(display, display.stopping)
    return _finish(campaign, summary.reason, as_json)


def _only(context: typer.Context, given: set[str], allowed: set[str], option: str, why: str) -> None:
    flags = sorted(item.opts[0] for item in context.command.params if item.name in given - allowed)
    if flags:
        raise VortexError(f"{flags[0]} does not go with {option}: {why}; leave it out")


def _finish(campaign: Campaign, reason: str, as_json: bool) -> int:
    """The last lines: why it ended, what is on the frontier, what is new, and how to go on."""
    from vortexlab.agent.run import Run

    opened = Run.open(campaign.config.folder, campaign.config.runs)
    board = opened.leaderboard()
    closing = board.closing_lines()
    if as_json:
        data: dict[str, Any] = {
            "run": opened.name,
            "folder": str(opened.folder),
            "reason": reason,
            "progress": opened.progress().to_json(),
            "closing": closing,
            "entries": board.to_json()["entries"],
        }
        print_json(data)
        return 0
    print(f"Run {opened.name} in {opened.folder}: {reason}.")
    from vortexlab.agent.naming import called

    name = called(opened.folder)
    print(f"See `vortex leaderboard {name}`, `vortex report {name}`, `vortex export {name} ID`.")
    for line in closing:
        print(line)
    return 0
