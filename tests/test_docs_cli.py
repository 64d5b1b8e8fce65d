"""docs/cli.md names the commands, arguments and options of the program, all of them and no others."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.proposers.models import LLMConfig, ModelConfig
from vortexlab.cli import main
from vortexlab.cli.schemas import OUTPUTS
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.geometries import GEOMETRIES
from vortexlab.kernels.devices import DEVICES
from vortexlab.kernels.gpu.report import TARGETS
from vortexlab.search_spaces.library import SEEDS

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "cli.md").read_text()
COMMANDS: dict[str, Any] = typer.main.get_command(main.application()).commands  # type: ignore[attr-defined]
SECTIONS = dict(re.findall(r"^## vortex (\S+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def options(command: str) -> dict[str, Any]:
    found = {}
    for item in COMMANDS[command].params:
        if item.param_type_name == "option" and "--help" not in item.opts:
            (name,) = (name for name in item.opts if name.startswith("--"))
            found[name] = item
    return found


def rows(command: str) -> dict[str, str]:
    """Option -> what the section of the command says of it."""
    found: dict[str, str] = {}
    for names, text in re.findall(r"^\| (`--[^|]*) \| (.*) \|$", SECTIONS[command], re.MULTILINE):
        for name in re.findall(r"`(--[a-z-]+)`", names):
            assert name not in found, f"{command} {name} twice"
            found[name] = text
    return found


def examples() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line.startswith("vortex ")]


def test_every_command_has_its_section_and_every_section_its_command() -> None:
    assert list(SECTIONS) == list(COMMANDS) == list(main.COMMANDS)
    functions = [path.rpartition(".")[2].replace("evaluate", "eval") for path in main.COMMANDS.values()]
    assert functions == list(main.COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_of_a_command_are_those_of_its_section(command: str) -> None:
    assert set(rows(command)) == set(options(command))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_first_line_of_a_section_is_the_usage(command: str) -> None:
    arguments = [item.make_metavar() if hasattr(item, "make_metavar") and not item.metavar else item.metavar
                 for item in COMMANDS[command].params if item.param_type_name == "argument"]  # fmt: skip
    expected = " ".join(["vortex", command, *arguments])
    assert SECTIONS[command].strip().startswith(f"`{expected}`"), expected


@pytest.mark.parametrize("command", COMMANDS)
def test_a_section_has_examples_with_options_that_exist(command: str) -> None:
    mine = [words for words in examples() if words[0] == command]
    assert mine
    for words in mine:
        assert {word for word in words if word.startswith("--")} <= set(options(command)), words


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults_that_a_command_declares_are_told(command: str) -> None:
    for name, item in options(command).items():
        text = rows(command)[name]
        if name == "--json" or item.is_flag or item.default in (None, "") or text == "as in `vortex search`":
            continue
        assert str(item.default) in re.findall(r"[\w-]+(?:\.[\w-]+)*", text), f"{command} {name}: {item.default!r}"


def test_defaults_that_the_library_has_are_told() -> None:
    evaluation, llm = EvaluationConfig(), LLMConfig((ModelConfig("some"),))
    expected = {
        "--evaluations": str(CampaignConfig().evaluations), "--proposer": f"`{CampaignConfig().proposers[0]}`",
        "--llm-calls": str(llm.calls), "--llm-tokens": f"{llm.tokens:,}", "--lengths": f"; {evaluation.lengths[0]},",
        "--contexts": f"; {evaluation.contexts}", "--predict-for": f"; `{evaluation.predicted_device}`",
        "--geometry": f"; `{evaluation.geometry}`", "--threads": str(evaluation.threads),
    }  # fmt: skip
    for name, text in expected.items():
        assert text in rows("search")[name], name
    assert f"{evaluation.resolved_batch_tokens:,} on the CPU" in rows("search")["--batch-tokens"]
    assert f"{EvaluationConfig(device='cuda').resolved_batch_tokens:,} on a GPU" in rows("search")["--batch-tokens"]


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (GEOMETRIES, rows("search")["--geometry"]),
        (DEVICES, rows("search")["--predict-for"]),
        (TARGETS, rows("check")["--target"]),
        (SEEDS, PAGE.split("## vortex search")[0]),
    ],
    ids=["geometries", "devices", "targets", "programs"],
)
def test_lists_of_names_are_whole(words: Any, where: str) -> None:
    assert [word for word in words if f"`{word}`" not in where] == []


def test_every_exit_status_is_in_the_table() -> None:
    listed = {int(number) for number in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert listed == {main.DONE, main.NO, main.BAD_INPUT, main.FAULT, main.INTERRUPTED, main.BROKEN_PIPE}


def test_every_command_with_json_has_a_schema() -> None:
    with_json = {name for name in COMMANDS if "--json" in options(name)}
    assert with_json == set(COMMANDS) == set(OUTPUTS) == {file.stem for file in (DOCS / "schemas").glob("*.json")}


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link
