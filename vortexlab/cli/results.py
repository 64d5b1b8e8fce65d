"""What a run found: `vortex status`, `leaderboard`, `show`, `compare`, `report`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vortexlab.cli import options
from vortexlab.cli.live import funnel
from vortexlab.cli.output import (
    AsJson,
    Runs,
    duration,
    interval,
    kv_cache,
    lines,
    number,
    print_gates,
    print_json,
    printable,
    settings,
    table,
    where,
)
from vortexlab.dsl.errors import VortexError

if TYPE_CHECKING:
    from vortexlab.agent.leaderboard import Entry, Leaderboard

ROWS = 50
_ARMS = 20  # rows of `vortex status`: those that had the most slots
RunName = Annotated[str, typer.Argument(metavar="[RUN]", help="A run's name or folder; by default the newest.")]
RunAndId = Annotated[list[str], typer.Argument(metavar="[RUN] ID", help="A trial, e.g. t0007, of the newest run.")]


def status(run: RunName = "latest", runs: Runs = "runs", as_json: AsJson = False) -> None:
    """How a campaign stands: rate, gate funnel, frontier, cost, time left."""
    from vortexlab.agent import glance

    found = glance.status(run, runs)
    if as_json:
        print_json(found)
        return
    budget = "" if found["budget"] is None else f" of {found['budget']}"
    ended = f": {found['reason']}" if found["reason"] else ""
    lines({
        "run": f"{found['run']} ({found['folder']})",
        "state": f"{found['state']}{ended}",
        "evaluated": f"{found['evaluations']}{budget}, {found['per_hour']:.1f} an hour",
        "recorded": f"{found['recorded']}: {found['accepted']} accepted, {found['rejected']} rejected, "
        f"{found['errors']} lost",
        "time": f"{duration(found['seconds'])} in {found['sessions']} session(s), "
        f"left: {duration(found['seconds_left'])}",
        "gates": funnel(found["funnel"]),
        "frontier": f"{found['frontier']} programs, hypervolume {found['hypervolume']:.3f}",
        "structures": f"{found['structures']} accepted, {found['new_structures']} of them new",
        "language models": f"{found['calls']} calls, {found['tokens']} tokens, {found['money']:.4f} of money, "
        f"{duration(found['model_seconds'])} of waiting",
    })  # fmt: skip
    for proposer, reason in found["stopped"].items():
        print(printable(f"not asked any more: {proposer}: {reason}"))
    if found["pending"]:
        print(printable(f"evaluating now, or cut off: {', '.join(found['pending'])}"))
    if found["pinned"]:
        print(printable(f"pinned: {' '.join(found['pinned'])}"))
    for text in found["waiting"]:
        print(printable(f"asked for, and not begun: {text}"))
    if found["arms"]:
        busiest = {id(arm) for arm in sorted(found["arms"], key=lambda arm: -arm["slots"])[:_ARMS]}
        print()
        table(
            "who proposed what",
            ("proposer", "operator", "slots", "accepted", "gain", "seconds"),
            [
                (arm["proposer"], arm["operator"], str(arm["slots"]), str(arm["accepted"]), number(arm["gain"], 4),
                 number(arm["cost"], 1))
                for arm in found["arms"] if id(arm) in busiest
            ],
            right=("slots", "accepted", "gain", "seconds"),
        )  # fmt: skip
        if (more := len(found["arms"]) - _ARMS) > 0:
            print(f"{more} more, who had fewer slots, are not shown; --json has all")
    for text in (*found["failures"], *found["notes"]):
        print(printable(f"note: {text}"))


def leaderboard(
    run: RunName = "latest",
    runs: Runs = "runs",
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a table with commas.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Rows to print; 0 for all (JSON and CSV have all).")] = ROWS,
) -> None:
    """The accepted programs, frontier first, with intervals."""
    from vortexlab.agent import glance
    from vortexlab.agent.derived import uncollected

    if as_json and as_csv:
        raise VortexError("--json and --csv exclude each other; give one")
    with uncollected():
        _print_leaderboard(glance.leaderboard(run, runs), as_json, as_csv, limit)


def _print_leaderboard(board: Leaderboard, as_json: bool, as_csv: bool, limit: int) -> None:
    if as_json:
        print_json(board.to_json())
        return
    if as_csv:
        print(board.to_csv(), end="")
        return
    rows = [
        (
            "*" * entry.on_frontier + "p" * entry.pinned, entry.id, entry.name,
            interval(entry.speedup), interval(entry.accuracy),
            f"{entry.shrunk.value:.3f}", f"{entry.rank}{'!' if entry.separated else ''}", number(entry.density),
            number(entry.state_bytes, 0), entry.kv_dtype or "-", number(entry.frontier_probability, 2),
            "new" if entry.new else "seed",
            entry.beats_seed.seed if entry.beats_seed and entry.beats_seed.beaten else "",
            " ".join(filter(None, (entry.proposer, entry.operator, entry.label))), settings(entry.knobs),
        )
        for entry in _best(board, limit)
    ]  # fmt: skip
    title = (
        f"run {board.run}: speed-up over dense [95 %], accuracy kept [95 %] and shrunk, which the rank is from; * is "
        "on the frontier, p pinned, ! above all that may be as fast; state in bytes a token"
    )
    names = (
        "", "id", "name", "speed-up", "accuracy", "shrunk", "rank", "density", "state", "KV", "P(front)", "kind",
        "beats", "by", "knobs",
    )  # fmt: skip
    table(title, names, rows, right=("shrunk", "rank", "density", "state", "P(front)"))
    if more := len(board.entries) - len(rows):
        print(f"{more} more accepted programs are not shown; --limit 0 prints all, --json and --csv have all")
    kinds = {(id(entry.conditions), entry.speed, entry.device): entry for entry in board.entries}
    for text in sorted({_conditions(entry.conditions, entry.speed, entry.device) for entry in kinds.values()}):
        print(printable(text))
    print()
    for text in board.closing_lines():
        print(printable(text))


def _best(board: Leaderboard, limit: int) -> list[Entry]:
    """The frontier and the best others by rank, `limit` in all (0: everybody), in the order of the leaderboard."""
    if not limit or len(board.entries) <= limit:
        return list(board.entries)
    ranked = sorted(enumerate(board.entries), key=lambda item: (not item[1].on_frontier, item[1].rank, item[0]))
    return [entry for _, entry in sorted(ranked[:limit], key=lambda item: item[0])]


def _device(conditions: Any) -> str:
    return str(conditions.get("predicted_device") or conditions.get("device", ""))


def _conditions(conditions: Any, speed: str, device: str) -> str:
    geometry = conditions.get("geometry") or {}
    name = geometry.get("name", "") if isinstance(geometry, dict) else str(geometry)
    parts = {
        "speed": where(speed, device),
        "geometry": name,
        "lengths": ", ".join(map(str, conditions.get("lengths", []))),
        "data": ", ".join(item["name"] for item in conditions.get("data", [])),
        "batch": ", ".join(f"{length}: {batch}" for length, batch in dict(conditions.get("batch", {})).items()),
        "dtype": str(conditions.get("dtype", "")),
        "model": Path(str(conditions.get("model", ""))).name,
        "protocol": str(conditions.get("protocol", "")),
    }
    return "; ".join(f"{key} {value}" for key, value in parts.items() if value)


def show(values: RunAndId, runs: Runs = "runs", as_json: AsJson = False) -> None:
    """One program: text, knobs, lineage, every measurement."""
    from vortexlab.agent.reflection import in_words
    from vortexlab.agent.run import Run

    run, (identifier,) = options.run_and_rest(values, 1, 1, "[RUN] ID")
    found = Run.open(run, runs).member(identifier)
    if as_json:
        print_json(found)
        return
    verdict = found["verdict"]
    stopped = f" by gate {verdict['gate']}: {verdict['reason']}" if verdict["gate"] else ""
    beats = found["beats_seed"]
    ancestors = [f"{item['id']} {item['name']} ({item['proposer']} {item['operator']})" for item in found["lineage"]]
    lines({
        "id": f"{found['id']} {found['name']}" + (f" ({found['label']})" if found["label"] else ""),
        "status": f"{verdict['status']}{stopped}",
        "speed-up": interval(verdict["speedup"]),
        "accuracy kept": interval(verdict["accuracy"]),
        "no worse than dense": _decision(verdict["non_inferiority"]),
        "density": number(verdict["density"], 4),
        "limited by": in_words(found["limits"]),
        "kept in memory": _state(verdict["state"]),
        "KV cache": kv_cache(verdict["conditions"]),
        "frontier": f"{'yes' if found['on_frontier'] else 'no'}, probability {found['frontier_probability']:.2f}",
        "pinned": "yes" if found["pinned"] else "no",
        "beats a seed": f"{beats['id']} {beats['name']} by {interval(beats['difference'])}" if beats else "-",
        "by the best choice": _oracle(found["oracle"]),
        "nearest published": found["nearest"]["text"],
        "knobs": settings(found["knobs"]),
        "made by": f"{found['proposer']} {found['operator']}",
        "lineage": " < ".join(ancestors) or "-",
        "hypothesis": " ".join(found["hypothesis"].split()) or "-",
        "measured on": f"{verdict['answers']} answers from {verdict['contexts']} contexts",
        "conditions": _conditions(
            verdict["conditions"], str(verdict["conditions"].get("speed", "")), _device(verdict["conditions"])
        ),
        "hash": found["hash"],
    })  # fmt: skip
    print_gates(verdict)
    print()
    print(printable(found["source"].strip()))


def _oracle(found: Any) -> str:
    if not found:
        return "-"
    kept = found["accuracy"]
    return f"accuracy kept {interval(kept)}, reading as many pages" if kept else str(found["reason"])


def _decision(found: Any) -> str:
    if not found:
        return "-"
    return f"{found['decision']} (margin {found['margin']:g}, p {found['p']:.2g}, {found['contexts']} contexts)"


def _state(found: Any) -> str:
    if not found:
        return "-"
    fits = ", ".join(f"{length}: {batch}" for length, batch in found["batch"].items() if batch is not None)
    batch = f"; batch that fits {found['device']}, weights aside: {fits}" if fits else ""
    return f"{found['state']:,.0f} bytes of state and {found['kv']:,.0f} of keys and values a token{batch}"


def compare(
    values: Annotated[list[str], typer.Argument(metavar="[RUN] ID ID...", help="Two or more trials of a run.")],
    runs: Runs = "runs",
    as_json: AsJson = False,
) -> None:
    """Programs of one run side by side: paired difference on the same contexts, and how their texts differ."""
    from vortexlab.agent.run import Run
    from vortexlab.compare import compare_members

    run, identifiers = options.run_and_rest(values, 2, None, "[RUN] ID ID...")
    found = compare_members(Run.open(run, runs), identifiers)
    if as_json:
        print_json(found)
        return
    base, *others = found["members"]
    table(
        f"run {found['run']}; differences are to {base['id']}, paired over the contexts that both were asked",
        ("id", "name", "status", "speed-up", "accuracy", "density", "d speed-up", "d accuracy", "contexts", "knobs"),
        [
            (
                item["id"], item["name"], item["status"], interval(item["speedup"]), interval(item["accuracy"]),
                number(item["density"]), interval(item["speedup_difference"]), interval(item["accuracy_difference"]),
                str(item["shared_contexts"]), settings(item["knobs"]),
            )
            for item in found["members"]
        ],
        right=("density", "contexts"),
    )  # fmt: skip
    for item in others:
        print()
        before, after = base["source"].splitlines(), item["source"].splitlines()
        for text in difflib.unified_diff(before, after, base["id"], item["id"], lineterm=""):
            print(printable(text))


def report(
    run: RunName = "latest",
    runs: Runs = "runs",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="By default report.html in the run.")] = None,
    as_json: AsJson = False,
) -> None:
    """One self-contained HTML page: what was tried, what won, by how much, what it cost, what to export."""
    from vortexlab.agent.derived import uncollected
    from vortexlab.agent.explain import recorded
    from vortexlab.agent.run import Run
    from vortexlab.report.page import write_report

    with uncollected():
        opened = Run.open(run, runs)
        path = write_report(opened, out or opened.folder / "report.html")
    if as_json:
        explained = [row.to_json() for row in recorded(opened)]
        print_json({"run": opened.name, "file": str(path), "bytes": path.stat().st_size, "explained": explained})
    else:
        print(path)
