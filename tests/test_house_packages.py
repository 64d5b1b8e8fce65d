"""What is built is what is in the folders: one top-level name, every subpackage, every data file."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import vortexlab

SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def settings(repo_root: Path) -> dict:
    return tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(repo_root: Path, settings: dict, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names in a wheel that was built from a copy of the sources, with a few folders of awkward kinds added."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        shutil.copy(repo_root / name, copy)
    for folder in settings["tool"]["setuptools"]["package-dir"].values():
        shutil.copytree(repo_root / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for added in ("kernels/deep/er/new.py", "agent/words/some-data/a.json", "evaluator/tiny.0/b.safetensors"):
        (copy / added).parent.mkdir(parents=True, exist_ok=True)
        (copy / added).write_text("")
    (copy / "kernels/deep/left_out.swp").write_text("")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "out", "."]
    subprocess.run(command, cwd=copy, check=True, capture_output=True, text=True)
    (built,) = (copy / "out").glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return archive.namelist()


def test_one_top_level_name_is_installed(wheel: list[str], settings: dict) -> None:
    version = settings["project"]["version"]
    assert {name.split("/")[0] for name in wheel} == {"vortexlab", f"vortexlab-{version}.dist-info"}


def test_every_python_file_is_installed(wheel: list[str], repo_root: Path, settings: dict) -> None:
    expected = set()
    for package, folder in settings["tool"]["setuptools"]["package-dir"].items():
        for file in (repo_root / folder).rglob("*.py"):
            expected.add(f"{package.replace('.', '/')}/{file.relative_to(repo_root / folder).as_posix()}")
    assert "vortexlab/dsl/ir.py" in expected
    assert expected <= set(wheel)


def test_new_folders_and_data_need_no_entry(wheel: list[str]) -> None:
    assert "vortexlab/kernels/deep/er/new.py" in wheel
    assert "vortexlab/agent/words/some-data/a.json" in wheel
    assert "vortexlab/evaluator/tiny.0/b.safetensors" in wheel
    assert "vortexlab/py.typed" in wheel
    assert not [name for name in wheel if name.endswith(".swp")]


def test_the_installed_package_is_this_one(repo_root: Path, settings: dict) -> None:
    """The version is written twice (so that no file is read at import); both say the same."""
    assert vortexlab.__version__ == settings["project"]["version"] == importlib.metadata.version("vortexlab")
    assert Path(vortexlab.__file__).resolve() == repo_root / "vortexlab" / "__init__.py"


def test_pins_are_exact_and_satisfy_the_ranges(repo_root: Path, settings: dict) -> None:
    pins = {}
    for line in (repo_root / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            found = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9A-Za-z.]*)", line)
            assert found, f"constraints.txt: {line!r} is no exact pin without a local tag"
            pins[found[1].lower().replace("_", "-")] = found[2]
    project = settings["project"]
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        name, least = re.fullmatch(r"([a-z-]+)>=([0-9.]+)(?:;.*)?", requirement).groups()
        numbers = [tuple(int(part) for part in re.findall(r"\d+", text)) for text in (pins[name], least)]
        assert numbers[0] >= numbers[1], f"{name} {pins[name]} is older than {least}"
