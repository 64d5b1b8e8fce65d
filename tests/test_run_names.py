"""Runs whose folders were renamed to something that a shell, an address or a page reads in its own way."""

from __future__ import annotations

import html
import re
import shlex
import shutil
from pathlib import Path

import pytest
from campaign_fakes import FakeEvaluator, config
from face_fixtures import EVALUATIONS, record, vortex

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.run import Run
from vortexlab.dashboard import mirror
from vortexlab.dsl.errors import VortexError

NAMES = ("my run", "a#b%20c?d&e'f", "\u00fc\u2192 \u65e5\u672c", '"<b>', "x" * 80)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("home"), "plain", EVALUATIONS)


@pytest.fixture(params=NAMES)
def folder(request: pytest.FixtureRequest, plain: Path, tmp_path: Path) -> Path:
    return shutil.copytree(plain, tmp_path / request.param)


COMMANDS = (
    ("status",), ("leaderboard",), ("show", "t0003"), ("compare", "t0001", "t0003"), ("report",),
    ("explain", "--evaluations", "0"), ("ask",), ("pin", "t0003"), ("pack",), ("init", "--from"),
)  # fmt: skip


def test_every_command_takes_the_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    for command, *rest in COMMANDS:
        words = (command, *rest, folder.name) if command == "init" else (command, folder.name, *rest)
        done = vortex(*words, "--runs", folder.parent, "--json")
        assert done.status == 0, (words, done.err)
        assert done.json(command).get("run", folder.name) == folder.name
    assert vortex("doctor", folder.name, "--runs", folder.parent, "--json").json("doctor")["missing"] == []
    assert "there is no trial 't9999'" in vortex("export", folder.name, "t9999", "--runs", folder.parent).complaint()
    assert vortex("status", folder).status == 0


def test_it_is_packed_goes_on_and_is_mirrored(folder: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.tar"
    vortex("pack", folder.name, "--runs", folder.parent, "--out", packed)
    got = vortex("unpack", packed, "--runs", tmp_path / "there", "--json").json("unpack")
    assert got["run"] == folder.name and Path(got["folder"]) == tmp_path / "there" / folder.name
    for _ in range(2):  # the second time, what the first has recorded under the name is read
        before = len(Run.open(folder.name, tmp_path / "there").trials)
        Campaign.resume(folder.name, tmp_path / "there", evaluations=before + 1, evaluator=FakeEvaluator()).run()
        moved = Run.open(folder.name, tmp_path / "there")
        assert len(moved.trials) > before and moved.config.name == folder.name
    with mirror(Run.open(folder)) as (file, live):
        assert file.is_file() and not live


def test_commands_on_the_page_can_be_copied_and_its_links_lead_somewhere(folder: Path) -> None:
    assert vortex("report", folder.name, "--runs", folder.parent).status == 0
    page = (folder / "report.html").read_text(encoding="utf-8").split("<script", 1)[0]
    assert f"<title>Vortex run {html.escape(folder.name)}</title>" in page and "<b>" not in page
    shown = [html.unescape(text) for text in re.findall(r"vortex (?:export|explain|finals) [^<\n]*", page)]
    assert len(shown) >= 3 and all(shlex.split(text)[2] == folder.name for text in shown), shown
    links = re.findall(r'href="([^"]*)"', page)
    assert links and all(link[0] == "#" and f'id="{link[1:]}"' in page for link in links)


def test_commands_in_lines_can_be_copied(folder: Path) -> None:
    name = shlex.quote(str(folder))
    line = vortex("pause", folder.name, "--runs", folder.parent).complaint()
    assert f"go on with `vortex search --resume {name}`" in line
    assert vortex("ask", folder.name, "--runs", folder.parent, "--json").json("ask")["answer_with"] == (
        f"vortex tell {name} REPLY.json"
    )


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "-x", "latest", "a\nb", "a\x00b"])
def test_names_that_no_run_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(VortexError, match="is not usable: the name of one folder"):
        config(tmp_path, name=name)


@pytest.mark.parametrize("name", ["my run", "a'b", "\u00fc", "x" * 65])
def test_names_of_new_runs_need_no_quotes(name: str, tmp_path: Path) -> None:
    with pytest.raises(VortexError, match=r"is not usable: letters, digits, '\.', '_' and '-', 64 at most"):
        Campaign(config(tmp_path / "runs", name=name), evaluator=FakeEvaluator())
    assert not (tmp_path / "runs").exists()
