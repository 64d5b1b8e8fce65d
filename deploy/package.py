"""Writing and reading exported packages.

A package is a folder that pip installs: the bound program in its IR, the hash, the tuned knobs, a manifest with the
measurements it was chosen for, and a self-test. It needs `vortexlab` at run time, of which only the language, the
executors and this room are imported. Nothing of the campaign (paths, keys, prompts) goes into it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from vortexlab.dsl import canonical_hash
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program

ENGINES = ("transformers",)
MANIFEST, PROGRAM, SELFTEST = "manifest.json", "program.json", "selftest.json"
FORMAT = 1


def slug(name: str, digest: str) -> str:
    """The module name of a package: readable, importable, and unique by the program's hash."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    base = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_") or "program"
    return f"vortex_{base}_{digest[:8]}"


@dataclass(frozen=True)
class Package:
    """An exported package on disk, checked."""

    directory: Path
    module: str
    program: Program
    manifest: dict[str, Any]
    selftest: dict[str, Any]


def _template(name: str) -> str:
    return resources.files("vortexlab.deploy").joinpath("templates", name).read_text()


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
) -> Package:
    """Writes the package of a bound program.

    `measurements` is what the evaluator found, with its conditions; `selftest` the cases of `vortexlab.deploy.selftest`.
    Raises `VortexError` for an unknown engine or a folder that is not empty and no earlier package.
    """
    if engine not in ENGINES:
        raise VortexError(f"cannot export to {engine!r}; this release exports to: {', '.join(ENGINES)}")
    if directory.exists() and not directory.is_dir():
        raise VortexError(f"{directory} is a file; choose a folder for the package")
    if directory.is_dir() and any(directory.iterdir()) and not list(directory.glob(f"*/{MANIFEST}")):
        raise VortexError(f"{directory} is not empty and holds no exported package; choose another folder")
    digest = canonical_hash(program)
    module = slug(program.name, digest)
    inner = directory / module
    manifest = {
        "format": FORMAT,
        "engine": engine,
        "name": program.name,
        "module": module,
        "program_hash": digest,
        "knobs": dict(knobs),
        "page": program.page_size,
        "measurements": dict(measurements),
        "vortexlab": version,
    }
    values = {
        "@MODULE@": module,
        "@NAME@": program.name,
        "@DISTRIBUTION@": module.replace("_", "-"),
        "@HASH@": digest,
        "@VERSION@": version,
        "@DOC@": " ".join(program.doc.split()) or "A sparse-attention program.",
        "@KNOBS@": ", ".join(f"{key} = {value}" for key, value in sorted(knobs.items())) or "none",
        "@FIGURES@": _figures(measurements),
        "@SOURCE@": source.strip(),
    }

    def fill(text: str) -> str:
        for key, value in values.items():
            text = text.replace(key, value)
        return text

    try:
        inner.mkdir(parents=True, exist_ok=True)
        (directory / "pyproject.toml").write_text(fill(_template("pyproject.toml.txt")))
        (directory / "README.md").write_text(fill(_template("README.md.txt")))
        (directory / "LICENSE").write_text(_template("LICENSE.txt"))
        (inner / "__init__.py").write_text(fill(_template("init.py.txt")))
        (inner / PROGRAM).write_text(json.dumps(program.to_json(), indent=1) + "\n")
        (inner / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        (inner / SELFTEST).write_text(json.dumps(selftest) + "\n")
    except OSError as error:
        raise VortexError(f"cannot write the package to {directory}: {error.strerror}; choose another folder") from None
    return read(directory)


def _figures(measurements: Mapping[str, Any]) -> str:
    """The measured objectives as Markdown lines, each with its interval and conditions."""
    lines = []
    for key, unit in (("speedup", "x the fastest dense attention step"), ("accuracy", "of dense accuracy kept")):
        item = measurements.get(key)
        if item:
            lines.append(f"- {key}: {item['value']:.3f} {unit} (95 % interval {item['low']:.3f} to {item['high']:.3f})")
    if measurements.get("density") is not None:
        lines.append(f"- effective density: {measurements['density']:.4f}")
    for key, value in sorted(dict(measurements.get("conditions", {})).items()):
        lines.append(f"- {key}: {value if isinstance(value, str) else json.dumps(value)}")
    return "\n".join(lines) or "- none"


def read(directory: Path) -> Package:
    """Reads a package and checks that its program is the one that was measured.

    Raises `VortexError` when the folder is no package, or the program was changed.
    """
    found = sorted(directory.glob(f"*/{MANIFEST}")) or sorted(directory.glob(MANIFEST))
    if not found:
        raise VortexError(f"{directory} holds no exported package (no {MANIFEST}); export one with `vortex export`")
    inner = found[0].parent
    try:
        manifest = json.loads((inner / MANIFEST).read_text())
        program = Program.from_json(json.loads((inner / PROGRAM).read_text()))
        selftest = json.loads((inner / SELFTEST).read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VortexError(f"the package in {directory} is damaged ({error}); export it again") from None
    if manifest.get("format") != FORMAT:
        raise VortexError(f"the package in {directory} has format {manifest.get('format')!r}; this release reads {FORMAT}")
    if canonical_hash(program) != manifest.get("program_hash"):
        raise VortexError(
            f"the program in {inner / PROGRAM} is not the one that was measured: its hash differs from the manifest's; "
            "export it again"
        )
    return Package(directory, manifest["module"], program, manifest, selftest)
