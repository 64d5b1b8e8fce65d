"""The report: everything in one file, nothing from outside, and text of programs is only ever text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects
import pytest
from big_campaigns import Tasked, record_night
from campaign_fakes import FakeEvaluator, config
from face_fixtures import NAME, vortex

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.proposers.base import Proposal
from vortexlab.agent.run import Run
from vortexlab.agent.trials import SEED
from vortexlab.report.growth import growth_figures
from vortexlab.report.highlight import highlighted
from vortexlab.report.markup import data as json_text
from vortexlab.report.page import render
from vortexlab.report.plot import marks_line, pareto
from vortexlab.report.selection import REJECTED, ROWS, Selection
from vortexlab.report.summary import recommended, summary_lines

HOSTILE = "</script></pre><script>alert(1)</script><img src=x onerror=alert(2)> & @FIGURES@ ]]>"


class Page(HTMLParser):
    """The page as a browser takes it apart: elements, their attributes, the text outside scripts."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag != "span":  # colours of a program's text
            self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished campaign and, told afterwards, one program whose every free text is hostile."""
    runs = tmp_path_factory.mktemp("runs")
    Campaign(config(runs, name=NAME, evaluations=24), evaluator=Tasked()).run()
    source = f'@program(page=16)\nclass Told:\n    """{HOSTILE}"""\n    def select():\n        return first(5)\n'
    campaign = Campaign(config(runs, name=NAME, evaluations=30), evaluator=Tasked())
    campaign.submit(Proposal(source, "Told", "handoff", "tell", hypothesis=HOSTILE, label=HOSTILE,
                             predicted_effect={HOSTILE: 1}))  # fmt: skip
    return Run.open(NAME, runs)


@pytest.fixture(scope="module")
def page(run: Run) -> Page:
    return Page(render(run))


def test_the_page_asks_nobody_for_anything(page: Page) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster", "background"):
            value = attributes.get(name)
            assert value is None or value.startswith("#"), (tag, name, value)
    assert not {"link", "iframe", "object", "embed", "form", "base", "img"} & {tag for tag, _ in page.tags}
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and "connect-src" not in rules
    assert "unsafe" not in rules["script-src"] and "http" not in policy and "*" not in policy


def test_only_the_pages_own_scripts_may_run(page: Page) -> None:
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy") or ""
    data, *code = page.scripts
    assert len(code) == 2
    assert json.loads(data).keys() == {"pareto", "funnel", "steps", "hours", "earned", "tasks"}
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in code]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes


def test_text_of_programs_is_only_text(page: Page, run: Run) -> None:
    assert HOSTILE in page.text and page.text.count(HOSTILE) >= 4  # label, hypothesis, prediction, source
    assert not [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    (figures, *_) = page.scripts
    shown = [text for text in _strings(json.loads(figures)) if "alert" in text or "<" in text]
    assert shown and not any(re.search(r"<(?!br>)", text) for text in shown)


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.items() for text in _strings(list(item))]
    return [text for item in value for text in _strings(item)] if isinstance(value, list) else [str(value)]


@pytest.mark.parametrize(
    "text",
    [
        HOSTILE, "</code></pre><svg onload=alert(1)>", "'''<b>'''\n'<i>' # <u>", "@x\n\n\nclass A:\n\tpass", "<",
        "&lt;&amp;", '<span class="k">def</span>', "\u202e txet \x00\x1b[2J", "x" * 30_000 + "<b>", "\r\n<\r",
    ],
)  # fmt: skip
def test_highlighting_adds_colours_and_nothing_else(text: str) -> None:
    found = Page(f"<pre>{highlighted(text)}</pre>")
    assert {tag for tag, _ in found.tags} <= {"pre", "span"}
    assert all(attributes.keys() <= {"class"} for _, attributes in found.tags)
    assert found.text == "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def test_programs_have_colours(page: Page) -> None:
    classes = {attributes.get("class") for tag, attributes in page.tags if tag == "span"}
    assert {"k", "nf", "nb", "nd", "m"} <= classes


def test_data_of_figures_cannot_end_its_script() -> None:
    plain = {"hover": "</script ><!-- <script> & ]]>"}
    text = json_text(plain)
    assert not set("<>&") & set(text) and json.loads(text) == plain


def test_every_program_is_on_the_page(page: Page, run: Run) -> None:
    entries = run.leaderboard().entries
    opened = {attributes["id"] for tag, attributes in page.tags if tag == "details"}
    assert opened == {entry.id for entry in entries}
    assert all(row.meaning in page.text for row in run.importances()) and "PED-ANOVA" in page.text
    for trial in run.trials:
        assert trial.id in page.text
        if trial.id in opened:
            assert trial.proposal.source.strip() in page.text
    fronts = sum(tag == "tr" and attributes.get("class") == "front" for tag, attributes in page.tags)
    assert fronts == len(run.leaderboard().frontier)


def test_every_link_has_its_target(page: Page) -> None:
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = [attributes["href"] or "" for tag, attributes in page.tags if tag == "a"]
    assert links and all(link.startswith("#") and link[1:] in targets for link in links)


def test_the_plot_shows_points_intervals_and_frontiers(run: Run) -> None:
    chosen = Selection(run)
    board = chosen.board
    figure = pareto(chosen)
    plotly.graph_objects.Figure(figure)  # refuses what Plotly does not know
    points = {}
    for trace in figure["data"]:
        for i, hover in enumerate(trace.get("hovertext", [])):
            points[hover.split()[0]] = (trace["name"], trace["x"][i], trace["y"][i], trace["error_y"]["arrayminus"][i])
    assert points.keys() == {entry.id for entry in board.entries}
    assert chosen.dense is not None and chosen.dense.name == "Dense"
    for entry in board.entries:
        kind, x, y, below = points[entry.id]
        assert (x, y) == (entry.speedup.value, entry.accuracy.value)
        assert below == pytest.approx(entry.accuracy.value - entry.accuracy.low)
        assert kind == ("dense" if entry is chosen.dense else "new" if entry.new else "published")
    lines = {trace["name"]: set(zip(trace["x"], trace["y"], strict=True)) for trace in figure["data"]
             if trace["mode"] == "lines"}  # fmt: skip
    assert lines["frontier"] == {(entry.speedup.value, entry.accuracy.value) for entry in board.frontier}
    published = [(entry.speedup.value, entry.accuracy.value) for entry in board.entries if not entry.new]
    assert lines["published programs' frontier"] == {
        p for p in published if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in published)
    }


def test_dense_stands_at_one_where_it_was_not_measured(tmp_path: Path) -> None:
    Campaign(config(tmp_path, evaluations=3, seeds=("quest", "sink_window")), evaluator=FakeEvaluator()).run()
    chosen = Selection(Run.open("run", tmp_path))
    (mark,) = (trace for trace in pareto(chosen)["data"] if trace["name"] == "dense")
    assert (mark["x"], mark["y"]) == ([1.0], [1.0]) and "error_x" not in mark
    assert "not measured as a program" in marks_line(chosen) and "no mark of an oracle" in marks_line(chosen)


def test_growth_ends_at_the_hypervolume_and_marks_the_seeds(run: Run) -> None:
    figures = growth_figures(Selection(run))
    gains = zip(run.trials, run.history.gains(), strict=True)
    gained = {trial.id for trial, gain in gains if gain > 0 and trial.arm.proposer == SEED}
    for figure in figures.values():
        plotly.graph_objects.Figure(figure)
        line, seeds, _ = figure["data"]
        assert line["y"][-1] == pytest.approx(run.progress().hypervolume) and line["y"] == sorted(line["y"])
        assert line["x"] == sorted(line["x"]) and seeds["name"] == "seeds" and set(seeds["customdata"]) == gained
    assert figures["steps"]["data"][0]["x"][-1] == len(run.trials)


def test_time_between_two_sessions_is_no_time_of_work(tmp_path: Path) -> None:
    record_night(tmp_path, 20)
    before = growth_figures(Selection(Run.open("night", tmp_path)))["hours"]["data"][0]["x"][-1]
    Campaign(config(tmp_path, name="night", evaluations=24), evaluator=FakeEvaluator()).run()  # years later
    later = Run.open("night", tmp_path)
    figure = growth_figures(Selection(later))["hours"]
    assert len(later.history.sessions) == 2 and len(later.trials) > 20
    assert figure["layout"]["xaxis"]["title"]["text"] == "seconds of work" and 0 < before < 3 * 20 + 3
    assert before <= figure["data"][0]["x"][-1] < later.history.seconds + 1 < before + 3600


def test_proposers_have_their_shares_and_arms_their_rows(run: Run, page: Page) -> None:
    figures = json.loads(page.scripts[0])
    for trace in figures["earned"]["data"]:
        assert sum(trace["x"]) == pytest.approx(1.0)
    assert "seed" not in figures["earned"]["data"][0]["y"]
    assert sum(arm.slots for arm in run.arms()) == len(run.trials)
    assert all(arm.arm.operator in page.text for arm in run.arms())


def test_tasks_of_every_frontier_member_can_be_chosen(run: Run, page: Page) -> None:
    figures = json.loads(page.scripts[0])["tasks"]
    front = {entry.id for entry in run.leaderboard().frontier}
    options = [attributes["value"] for tag, attributes in page.tags if tag == "option"]
    assert set(options) == figures.keys() == front
    best = recommended(run.leaderboard())
    assert best is not None and options[0] == best.id
    verdict = run.history.find(best.id).verdict
    assert verdict is not None
    dense, sparse = figures[best.id]["data"]
    assert dense["x"] == [row["dense"] for row in verdict.per_task.values()]
    assert sparse["x"] == [row["sparse"] for row in verdict.per_task.values()]


def test_lineage_leads_to_every_member_of_the_frontier(run: Run) -> None:
    family = Selection(run).family
    front = {entry.id for entry in run.leaderboard().frontier}
    ancestors = {row["id"] for name in front for row in run.lineage(name)}
    assert family.left == 0 and family.ids == ancestors | front
    for parent, children in family.children.items():
        assert all(parent in child.proposal.parents for child in children)


def test_a_long_campaign_is_summed_up(tmp_path: Path) -> None:
    """The frontier, its family and the best are there whole; of the rest the page says how many and who prints them."""
    night = Run.open(record_night(tmp_path, 500))
    chosen = Selection(night)
    assert len(chosen.board.entries) > ROWS + 100 and len(chosen.rows) == ROWS
    assert chosen.rejected and len(chosen.rejected) <= REJECTED
    found = Page(render(night))
    assert f"{len(chosen.board.entries) - ROWS:,} more accepted programs are in the plot alone" in found.text
    assert f"vortex leaderboard {night.name} --csv" in found.text
    opened = {attributes["id"] for tag, attributes in found.tags if tag == "details"}
    assert {entry.id for entry in chosen.board.frontier} | chosen.family.ids <= opened
    test_every_link_has_its_target(found)
    figure = pareto(chosen)
    (cells,) = (trace for trace in figure["data"] if trace["name"] == "other programs, gathered")
    counted = sum(int(hover.split()[0]) for hover in cells["hovertext"])
    alone = [hover for trace in figure["data"] if trace is not cells for hover in trace.get("hovertext", [])]
    assert counted + len(alone) == len(chosen.board.entries)
    assert {name for trace in figure["data"] for name in trace.get("customdata", []) if name} <= opened


def test_ten_lines_say_what_was_tried_what_won_and_what_to_do(run: Run, page: Page) -> None:
    lines = summary_lines(run)
    assert 8 <= len(lines) <= 10 and all("\n" not in line for line in lines)
    text = "\n".join(lines)
    state, best = run.progress(), recommended(run.leaderboard())
    assert best is not None and best.accuracy.value >= 0.95
    assert f"{state.recorded} programs" in text and f"{best.speedup.value:.2f} [" in text
    assert f"{best.frontier_probability:.0%} of bootstrap draws" in text and "Speed is predicted for fake" in text
    assert "Sealed contexts were not opened" in text
    assert lines[-1] == f"Export it: vortex export {run.name} {best.id} --to transformers"
    faster = [e for e in run.leaderboard().frontier if e.speedup.value > best.speedup.value]
    assert all(entry.shrunk.value < 0.95 for entry in faster)
    assert all(" ".join(line.split()) in page.text for line in lines)


def test_winners_are_named_only_where_there_are_some(run: Run) -> None:
    winners = [e for e in run.leaderboard().frontier if e.new and e.beats_seed and e.beats_seed.beaten]
    text = "\n".join(summary_lines(run))
    assert ("most by " in text) == bool(winners) and ("No new frontier member beats" in text) != bool(winners)


def test_a_campaign_without_an_accepted_program_has_a_report(tmp_path: Path) -> None:
    class Rejecting(FakeEvaluator):
        def evaluate(self, source: str, knobs: dict[str, Any] | None = None, *, fidelity: str = "full") -> Any:
            found = super().evaluate(source, knobs, fidelity=fidelity)
            return self._stopped(found, "rejected", "fidelity", f"keeps nothing {HOSTILE}")

    Campaign(config(tmp_path, evaluations=2, seeds=("quest", "dense")), evaluator=Rejecting()).run()
    opened = Run.open("run", tmp_path)
    assert recommended(opened.leaderboard()) is None
    lines = summary_lines(opened)
    assert "Stopped at fidelity" in "\n".join(lines) and not any("Export it" in line for line in lines)
    found = Page(render(opened))
    assert f"keeps nothing {HOSTILE}" in found.text and "<script>alert" not in "".join(found.scripts)


def test_the_command_replaces_the_page(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "page.html"
    for _ in range(2):
        found = vortex("report", run.folder, "--out", out, "--json").json("report")
        assert found["file"] == str(out) and found["bytes"] == out.stat().st_size
    assert [item.name for item in out.parent.iterdir()] == ["page.html"]
    assert vortex("report", run.folder).out.strip() == str(run.folder / "report.html")


def test_light_and_dark_share_one_set_of_names(repo_root: Path) -> None:
    """Every colour that the page or its figures name exists in both."""
    style = (repo_root / "vortexlab" / "report" / "page.css").read_text()
    script = (repo_root / "vortexlab" / "report" / "page.js").read_text()
    light, dark = (set(re.findall(r"--(\w+):", block)) for block in re.findall(r":root \{([^}]*)\}", style))
    used = set(re.findall(r"var\(--(\w+)\)", style)) | set(re.findall(r'colour\("(\w+)"\)', script))
    roles = {"new", "published", "dense", "muted"}
    assert light == dark and used | roles <= light
