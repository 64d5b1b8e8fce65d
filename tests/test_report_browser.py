"""The report in headless Chromium: nothing complains, nobody is asked, points and links answer, nothing overflows.

VORTEX_CHROMIUM names the browser where it is none of `chromium`, `chromium-browser`, `google-chrome` on the path;
VORTEX_SHOTS a folder for pictures of the pages.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from big_campaigns import Tasked, record_night
from campaign_fakes import config

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.proposers.base import Proposal
from vortexlab.agent.run import Run
from vortexlab.report.page import write_report

pytestmark = pytest.mark.browser
WIDE, PHONE = (1280, 900), (390, 844)
THEMES = ("light", "dark")
HOSTILE = (
    "</script></pre></details><script>window.ran=1</script><img src=x onerror=window.ran=2><svg onload=window.ran=3>"
)

Opened = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("VORTEX_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("there is no Chromium; name one with VORTEX_CHROMIUM")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module", params=["forty", "night"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A campaign of forty evaluations with a hostile program, and one too long to be shown whole."""
    runs = tmp_path_factory.mktemp("runs")
    if request.param == "night":
        return Run.open(record_night(runs, 1200))
    Campaign(config(runs, name="forty", evaluations=40), evaluator=Tasked()).run()
    source = f'@program(page=16)\nclass Told:\n    """{HOSTILE}"""\n    def select():\n        return first(5)\n'
    campaign = Campaign(config(runs, name="forty", evaluations=44), evaluator=Tasked())
    campaign.submit(Proposal(source, "Told", "handoff", "tell", hypothesis=HOSTILE, label=HOSTILE,
                             predicted_effect={HOSTILE: 1}))  # fmt: skip
    return Run.open("forty", runs)


@pytest.fixture(scope="module")
def file(run: Run) -> Path:
    return write_report(run, run.folder / "report.html")


@pytest.fixture
def opened(browser: Any, file: Path) -> Opened:
    """Opens the page and, when it is left, holds it to what is true of it at any size, whatever was done there."""

    @contextmanager
    def at(size: tuple[int, int] = WIDE, theme: str = "light") -> Iterator[Any]:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=theme)
        page = context.new_page()
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_selector("#pareto .main-svg")
        yield page
        assert said == []
        addresses = {url.split("#")[0] for url in asked if not url.startswith(("data:", "blob:"))}
        assert addresses <= {file.as_uri(), "about:blank"}
        assert page.evaluate("window.ran") is None
        assert page.evaluate("document.scrollingElement.scrollWidth") <= size[0]
        context.close()

    return at


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_the_page_is_quiet_and_fits(opened: Opened, run: Run, size: tuple[int, int], theme: str) -> None:
    with opened(size, theme) as page:
        for details in page.query_selector_all("details")[:20]:
            details.evaluate("box => { box.open = true; }")
        for name in ("pareto", "bars", "steps", "hours", "earned", "funnel"):
            box = page.locator(f"#{name}").bounding_box()
            drawn = page.locator(f"#{name} .main-svg").first.bounding_box()
            assert 0 < drawn["width"] <= box["width"] + 1 and box["x"] + box["width"] <= size[0], name
            assert page.locator(f"#{name} .trace, #{name} .scatterlayer path.js-line").count(), name
        assert page.evaluate(  # what is wider than the page scrolls in a box of its own
            """() => [...document.querySelectorAll("main *")].filter(item =>
                item.getBoundingClientRect().right > innerWidth + 1 && !item.closest(".scroll, pre, .figure")).length"""
        ) == 0
        shots = os.environ.get("VORTEX_SHOTS")
        if shots:
            page.screenshot(path=str(Path(shots) / f"{run.name}-{size[0]}-{theme}.png"))


@pytest.mark.parametrize("theme", THEMES)
def test_text_can_be_read(opened: Opened, theme: str) -> None:
    """Contrast of every text with what it stands on, as WCAG 2 computes it, is 4.5 at least."""
    with opened(theme=theme) as page:
        page.locator("details").first.evaluate("box => { box.open = true; }")
        pairs = page.evaluate(_COLOURS)
    assert len(pairs) > 5
    low = {f"{what}: {ink} on {paper}" for what, ink, paper in pairs if _contrast(ink, paper) < 4.5}
    assert not low


def test_a_change_of_theme_reaches_the_figures(opened: Opened) -> None:
    with opened() as page:
        fill = 'getComputedStyle(document.querySelector("#pareto .xtitle")).fill'
        before = page.evaluate(f"() => {fill}")
        page.emulate_media(color_scheme="dark")
        page.wait_for_function(f"() => {fill} !== {before!r}")


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_a_point_says_what_it_is_and_leads_to_its_program(opened: Opened, size: tuple[int, int]) -> None:
    with opened(size) as page:
        for name in ("pareto", "steps"):
            x, y, identifier = _point(page, name)
            page.mouse.move(x, y)
            page.wait_for_selector(f"#{name} .hoverlayer .hovertext")
            assert page.locator(f"#{name} .hoverlayer").text_content().startswith(identifier)
            page.mouse.click(x, y)
            _assert_shown(page, identifier)
            page.locator(f"#{identifier}").evaluate("box => { box.open = false; }")


def test_links_lead_to_what_they_name(opened: Opened) -> None:
    with opened() as page:
        dead = page.evaluate(
            """() => [...document.querySelectorAll("a")].map(link => link.getAttribute("href"))
                .filter(target => !document.getElementById(target.slice(1)))"""
        )
        assert dead == []
        for place in ("#programs ~ .scroll", ".tree", "#why ~ .scroll"):
            link = page.locator(f"{place} a").first
            identifier = (link.get_attribute("href") or "")[1:]
            link.click()
            _assert_shown(page, identifier)
            link.click()  # once more, with the address as it is
            page.locator(f"#{identifier}").evaluate("box => { box.open = false; }")
            link.click()
            _assert_shown(page, identifier)
            page.locator(f"#{identifier}").evaluate("box => { box.open = false; }")


def test_an_address_with_a_program_opens_it(opened: Opened, file: Path, run: Run) -> None:
    with opened() as page:
        identifier = run.leaderboard().frontier[0].id
        page.goto("about:blank")
        page.goto(f"{file.as_uri()}#{identifier}")
        _assert_shown(page, identifier)


def test_another_program_brings_other_bars(opened: Opened, run: Run) -> None:
    with opened() as page:
        values = page.locator("#member option").evaluate_all("options => options.map(option => option.value)")
        assert set(values) <= {entry.id for entry in run.leaderboard().frontier} and len(values) > 1
        for value in values[:3]:
            page.select_option("#member", value)
            drawn = page.evaluate('document.getElementById("bars").data.map(trace => [...trace.x])')
            verdict = run.history.find(value).verdict
            assert verdict is not None
            assert drawn == [[row[key] for row in verdict.per_task.values()] for key in ("dense", "sparse")]


def test_tables_scroll_in_their_boxes(opened: Opened) -> None:
    with opened(PHONE) as page:
        box = page.locator("#programs ~ .scroll").first
        assert box.evaluate("box => box.scrollWidth > box.clientWidth")
        box.evaluate("box => { box.scrollLeft = 200; }")
        assert box.evaluate("box => box.scrollLeft") == 200
        first = box.locator("tbody td").first.bounding_box()
        assert first["x"] == pytest.approx(box.bounding_box()["x"], abs=1), "ids stay in sight"


def test_text_of_programs_does_not_run(opened: Opened, run: Run) -> None:
    if run.name != "forty":
        pytest.skip("the other campaign has the hostile program")
    with opened() as page:
        identifier = run.trials[-1].id
        page.locator(f"#{identifier}").evaluate("box => { box.open = true; }")
        assert HOSTILE in page.locator(f"#{identifier} pre").text_content()
        assert page.locator("main script, main img, main svg:not(.main-svg svg, .main-svg)").count() == 0


def _point(page: Any, figure: str) -> tuple[float, float, str]:
    """Where the point of a figure that stands most alone lies on the screen, scrolled into sight, and whose it is."""
    page.evaluate(f'() => document.getElementById("{figure}").scrollIntoView()')
    return page.evaluate(
        """name => {
            const plot = document.getElementById(name), box = plot.getBoundingClientRect(), layout = plot._fullLayout;
            const points = plot.data.filter(trace => trace.customdata).flatMap(trace => trace.x.map((x, n) => [
                box.left + layout._size.l + layout.xaxis.d2p(x),
                box.top + layout._size.t + layout.yaxis.d2p(trace.y[n]), trace.customdata[n]]));
            const apart = one => Math.min(...points.filter(other => other !== one)
                .map(other => Math.hypot(one[0] - other[0], one[1] - other[1])));
            return points.filter(one => one[2]).sort((one, other) => apart(other) - apart(one))[0];
        }""",
        figure,
    )


def _assert_shown(page: Any, identifier: str) -> None:
    page.wait_for_function(f'() => document.getElementById("{identifier}").open')
    page.wait_for_function(
        f"""() => {{ const top = document.getElementById("{identifier}").getBoundingClientRect().top;
                     return top > -2 && top < innerHeight; }}"""
    )


#: What a text is, its colour and that of the nearest ground under it that is not transparent.
_COLOURS = """() => {
    const found = new Map();
    for (const item of document.querySelectorAll("main *, .figure text")) {
        const own = [...item.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
        if (!own || item.closest("script, option") || item.closest(".bars")) continue;
        let ground = item;
        const clear = style => /^(transparent|rgba\\\\(.*, 0\\\\))$/.test(style.backgroundColor);
        while (ground.parentElement && clear(getComputedStyle(ground))) ground = ground.parentElement;
        const style = getComputedStyle(item), paper = getComputedStyle(ground).backgroundColor;
        const ink = item.closest("svg") ? style.fill : style.color;
        found.set(ink + paper, [item.tagName + "." + item.className.toString(), ink, paper]);
    }
    return [...found.values()];
}""".replace("\\\\", "\\")


def _contrast(ink: str, paper: str) -> float:
    def luminance(colour: str) -> float:
        channels = [float(value) / 255 for value in re.findall(r"[\d.]+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(ink), luminance(paper)), reverse=True)
    return (high + 0.05) / (low + 0.05)
