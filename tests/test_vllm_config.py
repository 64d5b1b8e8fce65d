"""What may stand under "vortex" in vLLM's `additional_config`, without the engine."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest

from vortexlab.deploy import engines, package
from vortexlab.deploy.install import install
from vortexlab.deploy.vllm import config
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program
from vortexlab.kernels.gate import CONDITIONS, Gate, Ratio
from vortexlab.search_spaces.library import load

QUEST, WINDOW = load("quest").bind({"budget": 16}), load("sink_window").bind()


def write(folder: Path, program: Program, **more: Any) -> package.Package:
    given: dict[str, Any] = {"version": "0.1.0", "knobs": {}, "source": "", "measurements": {}, "selftest": {}, **more}
    return package.write(program, folder, engine="vllm", **given)


def gate(digest: str) -> Gate:
    return Gate((Ratio(1, 4096, 2.0, 1.5, 2.5),), {**dict.fromkeys(CONDITIONS, ""), "program_hash": digest})


def test_installed_packages_live_side_by_side_and_are_chosen_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for number, program in enumerate((QUEST, WINDOW)):
        names.append(write(tmp_path / str(number), program).module)
        install(tmp_path / str(number), tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    importlib.invalidate_caches()
    assert [config.of(name).program for name in names] == [QUEST, WINDOW]
    assert [config.of(name).name for name in names] == names
    points = importlib.metadata.entry_points(group="vllm.general_plugins")
    assert set(names) <= {point.name for point in points}
    for point in points:
        if point.name in names:
            assert callable(point.load())  # without vLLM: nothing of it is imported before vLLM calls


def test_a_folder_a_file_and_what_it_holds(tmp_path: Path) -> None:
    digest = write(tmp_path / "out", QUEST).manifest["program_hash"]
    shut = gate(digest)
    write(tmp_path / "out", QUEST, gate=shut)
    plain = config.of(str(tmp_path / "out"))
    assert (plain.program, plain.gate, plain.stats) == (QUEST, shut, None)
    file = tmp_path / "pattern.json"
    file.write_text(json.dumps({"program": "out", "gate": False, "stats": "stats.json"}))
    found = config.of(str(file))
    assert (found.program, found.gate, found.stats) == (QUEST, None, tmp_path / "stats.json")
    assert config.of({"program": str(tmp_path / "out"), "gate": False}).gate is None


@pytest.mark.parametrize(
    "given, words",
    [
        ("vortex_nothing_00000000", "no pattern 'vortex_nothing_00000000' is installed"),
        ("nowhere.json", "cannot read nowhere.json"),
        ({}, "names? no program"),
        ({"program": "x", "budget": 3}, "unknown key 'budget'; known are program, gate, stats"),
        ({"program": "x", "gate": "off"}, "gate in the pattern's settings is a bool, not 'off'"),
        (7, "names a package, its folder or a JSON file: not 7"),
    ],
)
def test_what_names_no_pattern_is_refused_with_one_line(given: Any, words: str) -> None:
    with pytest.raises(VortexError, match=words) as caught:
        config.of(given)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "pattern.json").write_text("{")
    with pytest.raises(VortexError, match="are no JSON"):
        config.of(str(tmp_path / "pattern.json"))


@pytest.mark.parametrize(
    "version, fits",
    [("0.32.0", True), ("0.32.0rc1", True), ("0.33.9+cpu", True), ("0.31.2", False), ("0.34.0", False), ("1.0", False)],
)
def test_releases(version: str, fits: bool) -> None:
    if fits:
        engines.check_version(config.ENGINE, version, "leave it")
        return
    with pytest.raises(VortexError, match=rf"and {version.split('+')[0]} is installed; install one of those, or leave"):
        engines.check_version(config.ENGINE, version, "leave it")
