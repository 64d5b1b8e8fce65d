"""Folders import in one direction only, and each takes from outside only what its work needs."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from face_fixtures import record

# What a folder may import from the others. `vortexlab`, the face, may import all.
MAY_IMPORT = {
    "dsl": {"dsl"},
    "kernels": {"dsl", "kernels"},
    "evaluator": {"dsl", "kernels", "evaluator"},
    "search_spaces": {"dsl", "search_spaces"},
    "agent": {"dsl", "kernels", "evaluator", "search_spaces", "agent"},
    "deploy": {"dsl", "kernels", "deploy"},
}
# What a folder may import from outside the standard library. Where None stands, whatever pyproject.toml declares.
WORKER = {"torch", "triton", "transformers", "safetensors", "numpy"}
THIRD_PARTY: dict[str, set[str] | None] = {
    "dsl": {"torch", "numpy", "safetensors"},
    "kernels": {"torch", "triton", "numpy"},
    "evaluator": WORKER | {"datasets", "pydantic", "pandas"},
    "search_spaces": {"torch", "numpy"},
    "agent": None,
    "deploy": WORKER | {"vllm", "sglang"},
    "vortexlab": None,
}
HEAVY = ("optuna", "openai", "datasets", "pydantic")


@dataclass(frozen=True)
class Import:
    """One imported module (`name`: `vortexlab.dsl.ir` also for `from vortexlab.dsl.ir import Program`)."""

    file: str
    line: int
    name: str
    symbol: str | None


def python_files(root: Path) -> Iterator[tuple[str, str, Path]]:
    """(folder, module, file) of every Python file of the packages but the programs, which are data."""
    for folder in THIRD_PARTY:
        for file in sorted((root / folder).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            if parts[:2] == ("search_spaces", "programs"):
                continue
            parts = parts if folder == "vortexlab" else ("vortexlab", *parts)
            yield folder, ".".join(parts).removesuffix(".__init__"), file


def imports_of(root: Path, file: Path) -> list[Import]:
    """Every import statement of a file, those inside functions too."""
    where = file.relative_to(root).as_posix()
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            found += [Import(where, node.lineno, alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            found += [Import(where, node.lineno, name, alias.name) for alias in node.names]
    return found


def direction_errors(root: Path) -> list[str]:
    """Imports against the direction of the table, relative ones, and those of a folder under its bare name."""
    errors = []
    for folder, _, file in python_files(root):
        for found in imports_of(root, file):
            head, *rest = found.name.split(".")
            place = f"{found.file}:{found.line}"
            if head == "":
                errors.append(f"{place}: relative import; write vortexlab.{folder}...")
            elif head in MAY_IMPORT:
                errors.append(f"{place}: {head} is vortexlab.{head}")
            elif head == "vortexlab" and folder != "vortexlab":
                target = rest[0] if rest else found.symbol
                if target not in MAY_IMPORT[folder] | {"__version__"}:
                    errors.append(f"{place}: {folder} may not import {target} of vortexlab")
    return errors


def declared(root: Path) -> set[str]:
    """Import names of the dependencies and extras in pyproject.toml, and of the engines a winner is exported to."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    names = {"".join(c if c.isalnum() or c in "-_" else " " for c in line).split()[0] for line in lines}
    return {name.replace("-", "_") for name in names} | {"flashinfer", "sglang"}


def third_party_errors(root: Path) -> list[str]:
    errors = []
    for folder, _, file in python_files(root):
        allowed = THIRD_PARTY[folder]
        allowed = declared(root) if allowed is None else allowed
        for found in imports_of(root, file):
            head = found.name.split(".")[0]
            if head and head != "vortexlab" and head not in sys.stdlib_module_names and head not in allowed:
                errors.append(f"{found.file}:{found.line}: {folder} may not import {head}")
    return errors


def reachable(root: Path, start: str) -> dict[str, Path]:
    """Modules of ours that importing `start` can load, with the packages above them.

    The root package names others only to load them on demand, for its users; what it does is checked by importing.
    """
    files = {module: file for _, module, file in python_files(root)}
    seen: dict[str, Path] = {}
    todo = [start]
    while todo:
        module = todo.pop()
        if module in seen or module not in files:
            continue
        seen[module] = files[module]
        todo += [module.rsplit(".", n)[0] for n in range(1, module.count("."))]
        for found in imports_of(root, files[module]):
            todo += [found.name, f"{found.name}.{found.symbol}"]
    return seen


def worker_errors(root: Path) -> list[str]:
    """What the process that evaluates a program must not import: it runs where only torch and its like are."""
    errors = []
    for file in reachable(root, "vortexlab.evaluator.worker").values():
        for found in imports_of(root, file):
            head = found.name.split(".")[0]
            if head != "vortexlab" and head not in sys.stdlib_module_names and head not in WORKER:
                errors.append(f"{found.file}:{found.line}: the worker may not import {head}")
    return errors


def test_imports_go_one_way(repo_root: Path) -> None:
    assert direction_errors(repo_root) == []


def test_folders_import_only_what_their_work_needs(repo_root: Path) -> None:
    assert third_party_errors(repo_root) == []


def test_the_worker_imports_only_torch_and_its_like(repo_root: Path) -> None:
    assert "vortexlab.evaluator.worker" in reachable(repo_root, "vortexlab.evaluator.worker")
    assert worker_errors(repo_root) == []


def test_importing_the_worker_loads_nothing_of_the_controller() -> None:
    script = """
import sys
import vortexlab.evaluator.worker
heavy = ("datasets", "openai", "optuna", "pandas", "plotly", "pydantic", "typer", "vortexlab.agent", "vortexlab.api")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("path", "line", "check"),
    [
        ("dsl/a.py", "import vortexlab.kernels.cache", direction_errors),
        ("kernels/a.py", "from vortexlab.evaluator import verdict", direction_errors),
        ("search_spaces/a.py", "from vortexlab.kernels import cache", direction_errors),
        ("evaluator/tasks/a.py", "def f():\n    from vortexlab.agent import store", direction_errors),
        ("deploy/a.py", "from vortexlab import evaluator", direction_errors),
        ("agent/a.py", "from vortexlab.deploy.package import write", direction_errors),
        ("dsl/a.py", "from vortexlab import search", direction_errors),
        ("agent/a.py", "from . import store", direction_errors),
        ("agent/a.py", "from kernels.cache import PagedKV", direction_errors),
        ("dsl/a.py", "import optuna", third_party_errors),
        ("kernels/a.py", "def f():\n    import pydantic.fields", third_party_errors),
        ("deploy/a.py", "from datasets import Dataset", third_party_errors),
        ("agent/a.py", "import requests", third_party_errors),
        ("evaluator/worker.py", "import vortexlab.evaluator.tasks.b", worker_errors),
        ("evaluator/worker.py", "from vortexlab.evaluator.tasks import b", worker_errors),
    ],
)
def test_a_wrong_import_is_found(repo_root: Path, tmp_path: Path, path: str, line: str, check) -> None:
    for name, text in {path: line, "evaluator/tasks/b.py": "import datasets", "vortexlab/__init__.py": ""}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text((repo_root / "pyproject.toml").read_text(encoding="utf-8"))
    assert len(check(tmp_path)) == 1


def test_the_version_may_be_imported_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "dsl").mkdir()
    (tmp_path / "dsl" / "a.py").write_text("from vortexlab import __version__", encoding="utf-8")
    assert direction_errors(tmp_path) == []


def test_the_language_and_kernels_run_without_the_search(repo_root: Path) -> None:
    """Loads every module of both where the search's libraries cannot be imported."""
    modules = [module for folder, module, _ in python_files(repo_root) if folder in ("dsl", "kernels")]
    assert modules
    code = (
        "import importlib, sys\n"
        f"for name in {HEAVY!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repo_root, check=False)
    assert result.returncode == 0, result.stderr


def test_importing_the_package_loads_nothing_heavy(repo_root: Path) -> None:
    code = "import sys, vortexlab; print(*{name.split('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repo_root, check=True)
    loaded = set(result.stdout.split())
    assert "vortexlab" in loaded
    assert not loaded & {*WORKER, *HEAVY, "pandas", "plotly", "typer", "rich"}


@pytest.mark.parametrize("command", ["status", "leaderboard"])
def test_what_is_kept_is_printed_without_the_reader_of_records(command: str, tmp_path: Path) -> None:
    """Neither numpy nor pydantic, the language nor the other commands: a second of loading for a page of text."""
    record(tmp_path)
    script = (
        "import sys\nfrom vortexlab.cli.main import run\n"
        f"assert run([{command!r}, '--runs', {str(tmp_path)!r}]) == 0\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "vortexlab.agent.glance" in loaded and done.stdout
    assert not loaded & {*HEAVY, "numpy", "pydantic", "rich.table", "vortexlab.agent.run", "vortexlab.dsl.parser",
                         "vortexlab.cli.search"}  # fmt: skip


def test_reading_a_record_loads_no_torch() -> None:
    """`vortex status`, `runs`, `leaderboard`, `show`, `compare` and `report` answer at once."""
    modules = ("cli.main", "agent.run", "agent.explain", "agent.finals", "compare", "report.page")
    script = "import sys\n" + "".join(f"import vortexlab.{name}\n" for name in modules) + (
        "print(*{'torch', 'triton', 'transformers', 'pandas', 'optuna', 'plotly', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
