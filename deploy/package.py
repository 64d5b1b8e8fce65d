"""Writing and reading exported packages.

A package is a folder that pip installs: the bound program in its typed form, the hash, the tuned knobs, its learned
parameters, a manifest with the measurements it was chosen for and its dense gate, and a self-test. It needs `vortexlab`
at run time, of which only the language, the executors and this room are imported. Nothing of the campaign (paths, keys,
prompts) goes into it.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from vortexlab.deploy import engines, markdown
from vortexlab.dsl import canonical_hash
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program
from vortexlab.dsl.parameters import Parameters
from vortexlab.kernels.gate import Gate

MANIFEST, PROGRAM, SELFTEST = "manifest.json", "program.json", "selftest.json"
PARAMETERS = "parameters.safetensors"
FORMAT = 1
_PARTS = ("pyproject.toml", "README.md", "LICENSE")
_BUILT = ("build", "__pycache__")  # what pip leaves beside them


def slug(name: str, digest: str) -> str:
    """The module name of a package: readable, importable, and unique by the program's hash."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    base = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_") or "program"
    return f"vortex_{base}_{digest[:8]}"


@dataclass(frozen=True)
class Package:
    """An exported package on disk, checked. `root` is the folder from which `module` can be imported.

    `gate` is None where none was measured.
    """

    root: Path
    module: str
    program: Program
    manifest: dict[str, Any]
    selftest: dict[str, Any]
    gate: Gate | None = None


def write(
    program: Program,
    directory: Path,
    *,
    engine: str,
    version: str,
    knobs: Mapping[str, Any],
    source: str,
    measurements: Mapping[str, Any],
    selftest: Mapping[str, Any],
    gate: Gate | None = None,
) -> Package:
    """Writes the package of a bound program. The folder appears whole, or the one that was there stays.

    `measurements` is what the evaluator found, with its conditions; `selftest` holds the cases of
    `vortexlab.deploy.selftest`. Raises `VortexError` for an unknown engine, for a program that it cannot run, and for a
    folder that cannot be written or holds anything but an earlier package.
    """
    check_target(directory, engine)
    chosen = engines.find(engine)
    engines.check_program(program, chosen)
    digest = canonical_hash(program)
    module = slug(program.name, digest)
    manifest = {
        "format": FORMAT,
        "engine": engine,
        "name": program.name,
        "module": module,
        "program_hash": digest,
        "knobs": dict(knobs),
        "page": program.page_size,
        "parameters": program.parameters.digest if program.parameters else None,
        "measurements": dict(measurements),
        "gate": gate and gate.to_json(),
        "vortexlab": version,
    }
    values = {
        "MODULE": module,
        "NAME": program.name,
        "DISTRIBUTION": module.replace("_", "-"),
        "HASH": digest,
        "VERSION": version,
        "DOC": markdown.plain(program.doc) or "A sparse-attention program.",
        "KNOBS": ", ".join(f"{key} = {value}" for key, value in sorted(knobs.items())) or "none",
        "FIGURES": markdown.figures(measurements),
        "GATE": markdown.gated(gate),
        "SOURCE": markdown.fenced(source),
        "ENGINE": chosen.title,
        "REQUIRES": "".join(f', "{line}"' for line in chosen.requires),
        "PLUGINS": _plugin(chosen, module),
        "PAGE": str(program.page_size),
    }
    values["USE"] = _filled(f"{engine}/use.md.txt", values).strip()
    held = replace(program, parameters=program.parameters and replace(program.parameters, path=PARAMETERS))
    files = {
        "pyproject.toml": _filled("pyproject.toml.txt", values),
        "README.md": _filled("README.md.txt", values),
        "LICENSE": _filled("LICENSE.txt", {}),
        f"{module}/__init__.py": _filled(f"{engine}/init.py.txt", values),
        f"{module}/{PROGRAM}": json.dumps(held.to_json(), indent=1) + "\n",
        f"{module}/{MANIFEST}": json.dumps(manifest, indent=1, sort_keys=True) + "\n",
        f"{module}/{SELFTEST}": json.dumps(selftest) + "\n",
    }
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".vortex-export-", dir=directory.parent) as scratch:
            fresh = Path(scratch) / "package"
            (fresh / module).mkdir(parents=True)
            for name, text in files.items():
                (fresh / name).write_text(text, encoding="utf-8")
            if program.parameters:
                _copy(program.parameters, fresh / module / PARAMETERS)
            _swap(fresh, directory, Path(scratch) / "earlier")
    except OSError as error:
        raise VortexError(
            f"cannot write the package to {directory} ({error.strerror or error}); free some space or choose another "
            "folder"
        ) from error
    return read(directory)


def _swap(fresh: Path, directory: Path, aside: Path) -> None:
    """Puts `fresh` where `directory` is or will be; what was there goes `aside`, and back when that fails."""
    held = directory.exists()
    if held:
        directory.rename(aside)
    try:
        fresh.rename(directory)
    except OSError:
        if held:
            aside.rename(directory)
        raise


def check_target(directory: Path, engine: str) -> None:
    """Raises `VortexError` when a package for `engine` cannot be put there; `write` does the same."""
    engines.find(engine)
    if not directory.exists():
        return
    if not directory.is_dir():
        raise VortexError(f"{directory} is a file; choose a folder for the package")
    foreign = sorted(item.name for item in directory.iterdir() if not _ours(item))
    if foreign:
        raise VortexError(f"{directory} holds {foreign[0]!r}, which is no part of a package; choose another folder")


def _ours(item: Path) -> bool:
    return (
        item.name in _PARTS
        or item.name in _BUILT
        or item.name.endswith(".egg-info")
        or (item.is_dir() and item.name.startswith("vortex_") and (item / MANIFEST).is_file())
    )


def _plugin(engine: engines.Engine, module: str) -> str:
    """The entry point of a package, in TOML."""
    return engine.plugins and f'[project.entry-points."{engine.plugins}"]\n{module} = "{module}:register"\n'


def _filled(template: str, values: Mapping[str, str]) -> str:
    """A template with its ``@WORDS@`` replaced, once: what a value holds is never looked at again."""
    text = (resources.files("vortexlab.deploy") / "templates" / template).read_text(encoding="utf-8")
    return re.sub(r"@([A-Z]+)@", lambda match: values.get(match[1], match[0]), text)


def read(directory: Path) -> Package:
    """Reads a package (exported, or installed with ``pip install --target``) and checks that its program is unchanged.

    Raises `VortexError` when the folder is no package, holds several, or the program is not the one measured.
    """
    found = sorted(directory.glob(f"*/{MANIFEST}")) or sorted(directory.glob(MANIFEST))
    if not found:
        raise VortexError(f"{directory} holds no exported package (no {MANIFEST}); export one with `vortex export`")
    if len(found) > 1:
        names = ", ".join(item.parent.name for item in found)
        raise VortexError(f"{directory} holds several packages ({names}); name the folder of one")
    inner = found[0].parent
    try:
        manifest = json.loads((inner / MANIFEST).read_text(encoding="utf-8"))
        written = manifest.get("format")
        if written != FORMAT:
            raise VortexError(f"the package in {directory} has format {written!r}; this release reads {FORMAT}")
        program = Program.from_json(json.loads((inner / PROGRAM).read_text(encoding="utf-8")))
        program = _with_parameters(program, inner)
        selftest = json.loads((inner / SELFTEST).read_text(encoding="utf-8"))
        expected, module = str(manifest["program_hash"]), str(manifest["module"])
        digest = canonical_hash(program)
        gate = None if manifest.get("gate") is None else Gate.from_json(manifest["gate"])
    except VortexError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        line = " ".join(str(error).split())
        raise VortexError(f"the package in {directory} is damaged ({line}); export it again") from error
    if digest != expected or module != inner.name or not module.endswith(expected[:8]):
        raise VortexError(
            f"the program in {inner / PROGRAM} is not the one that was measured: its hash {digest[:12]} differs from "
            f"the manifest's {expected[:12]}; export it again"
        )
    if gate is not None and gate.conditions["program_hash"] != digest:
        raise VortexError(f"the gate in {inner / MANIFEST} was measured for another program; export it again")
    return Package(inner.parent, module, program, manifest, selftest, gate)


def _copy(parameters: Parameters, file: Path) -> None:
    """Raises `VortexError` when the parameters are others than when the program was bound."""
    tensors = parameters.tensors()
    if parameters.held is None:
        shutil.copyfile(parameters.path, file)
    else:
        from safetensors.torch import save_file

        save_file(dict(tensors), file)


def _with_parameters(program: Program, inner: Path) -> Program:
    """The program with the parameters that lie beside it. Raises `VortexError` when they are others than before."""
    if program.parameters is None:
        return program
    found = Parameters.open(inner / PARAMETERS)
    if found.digest != program.parameters.digest:
        raise VortexError(
            f"the parameters in {found.path} are not those that were measured: their SHA-256 {found.digest[:12]} "
            f"differs from {program.parameters.digest[:12]}; export it again"
        )
    return replace(program, parameters=found)
