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
from campaign_fakes import FakeEvaluator, config
from face_fixtures import NAME, record, vortex

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.proposers.base import Proposal
from vortexlab.agent.run import Run
from vortexlab.report.page import _data, render
from vortexlab.report.plot import pareto
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
    record(runs, evaluations=24)
    source = f'@program(page=16)\nclass Told:\n    """{HOSTILE}"""\n    def select():\n        return first(5)\n'
    campaign = Campaign(config(runs, name=NAME, evaluations=30), evaluator=FakeEvaluator())
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
    assert len(code) == 2 and json.loads(data).keys() == {"pareto", "funnel"}
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in code]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes


def test_text_of_programs_is_only_text(page: Page, run: Run) -> None:
    assert HOSTILE in page.text and page.text.count(HOSTILE) >= 4  # label, hypothesis, prediction, source
    assert not [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    hovers = [text for trace in pareto(run.leaderboard())["data"] for text in trace.get("hovertext", [])]
    assert hovers and not any(re.search(r"<(?!br>)", text) for text in hovers)


def test_data_of_figures_cannot_end_its_script() -> None:
    plain = {"hover": "</script ><!-- <script> & ]]>"}
    text = _data(plain)
    assert not set("<>&") & set(text) and json.loads(text) == plain


def test_every_program_is_on_the_page(page: Page, run: Run) -> None:
    entries = run.leaderboard().entries
    rows = sum(tag == "tr" for tag, _ in page.tags)
    stopped = [trial for trial in run.trials if trial.verdict and trial.verdict.gate]
    audits = 1 + len(run.audits())
    knobs = len(run.importances())
    assert rows == 1 + len(entries) + (1 + len(stopped) if stopped else 0) + audits + (1 + knobs if knobs else 0)
    assert all(row.meaning in page.text for row in run.importances()) and "PED-ANOVA" in page.text
    opened = {attributes["id"] for tag, attributes in page.tags if tag == "details"}
    assert opened == {entry.id for entry in entries}
    for trial in run.trials:
        assert trial.id in page.text
        if trial.id in opened:
            assert trial.proposal.source.strip() in page.text
    assert sum(attributes.get("class") == "front" for _, attributes in page.tags) == len(run.leaderboard().frontier)


def test_the_plot_shows_points_intervals_and_frontier(run: Run) -> None:
    board = run.leaderboard()
    figure = pareto(board)
    plotly.graph_objects.Figure(figure)  # refuses what Plotly does not know
    points = {}
    for trace in figure["data"][:2]:
        for i, hover in enumerate(trace["hovertext"]):
            points[hover.split()[0]] = (trace["name"], trace["x"][i], trace["y"][i], trace["error_y"]["arrayminus"][i])
    assert points.keys() == {entry.id for entry in board.entries}
    for entry in board.entries:
        kind, x, y, below = points[entry.id]
        assert (x, y) == (entry.speedup.value, entry.accuracy.value)
        assert below == pytest.approx(entry.accuracy.value - entry.accuracy.low)
        assert kind == ("new" if entry.new else "published")
    line = figure["data"][2]
    assert sorted(zip(line["x"], line["y"], strict=True)) == sorted(
        (entry.speedup.value, entry.accuracy.value) for entry in board.frontier
    )


def test_ten_lines_say_what_was_tried_what_won_and_what_to_do(run: Run, page: Page) -> None:
    lines = summary_lines(run)
    assert 8 <= len(lines) <= 10 and all("\n" not in line for line in lines)
    text = "\n".join(lines)
    state, best = run.progress(), recommended(run.leaderboard())
    assert best is not None and best.accuracy.value >= 0.95
    assert f"{state.recorded} programs" in text and f"{best.speedup.value:.2f} [" in text
    assert f"{best.frontier_probability:.0%} of bootstrap draws" in text and "Speed is predicted for fake" in text
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
    assert light == dark and used | {"accent", "muted", "soft"} <= light
