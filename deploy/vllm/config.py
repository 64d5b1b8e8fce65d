"""Which pattern an engine runs: what stands under "vortex" in vLLM's `additional_config`."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vortexlab.deploy import engines, package
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program
from vortexlab.kernels.gate import Gate

#: The key of `additional_config`.
KEY = "vortex"
ENGINE = engines.find("vllm")
_MEANING = {"program": str, "gate": bool, "stats": str}


@dataclass(frozen=True)
class Pattern:
    """A program as an engine runs it. `gate`: None where every decode step is sparse. `stats`: where the engine
    writes what its steps read; None for nowhere."""

    name: str
    program: Program
    gate: Gate | None = None
    stats: Path | None = None


def of(given: Any) -> Pattern:
    """The pattern that ``additional_config={"vortex": given}`` asks for.

    `given` is the name of an installed package, the folder of one, a JSON file, or what such a file holds: `program`
    (name or folder; in a file, folders are relative to it), `gate` (whether the package's dense gate is used; true) and
    `stats` (a file to write). Raises `VortexError` when that is no package, or its program does not run in vLLM.
    """
    if isinstance(given, Mapping):
        return _read(json.dumps(dict(given), sort_keys=True), Path.cwd())
    if not isinstance(given, str) or not given:
        raise VortexError(f'additional_config["{KEY}"] names a package, its folder or a JSON file: not {given!r}')
    if not given.endswith(".json"):
        return _read(json.dumps({"program": given}), Path.cwd())
    file = Path(given).absolute()
    try:
        return _read(file.read_text(encoding="utf-8"), file.parent)
    except OSError as error:
        raise VortexError(f"cannot read {given} ({error.strerror}); give an existing JSON file") from error


@functools.cache
def _read(text: str, base: Path) -> Pattern:
    """Read once: the package of an engine does not change while it runs."""
    try:
        given = json.loads(text)
    except ValueError as error:
        raise VortexError(f'the pattern\'s settings are no JSON ({error}); write {{"program": NAME}}') from error
    if not isinstance(given, dict) or "program" not in given:
        raise VortexError('the pattern\'s settings name no program; write {"program": NAME}')
    for key, value in given.items():
        if key not in _MEANING:
            raise VortexError(f"the pattern's settings have an unknown key {key!r}; known are {', '.join(_MEANING)}")
        if not isinstance(value, _MEANING[key]):
            raise VortexError(f"{key} in the pattern's settings is a {_MEANING[key].__name__}, not {value!r}")
    found = package.read(_folder(given["program"], base))
    engines.check_program(found.program, ENGINE)
    stats = base / given["stats"] if "stats" in given else None
    if stats is not None and not stats.parent.is_dir():
        raise VortexError(f"{stats.parent}, where the engine is to write its statistics, is no folder; make it")
    return Pattern(found.module, found.program, found.gate if given.get("gate", True) else None, stats)


def _folder(name: str, base: Path) -> Path:
    """Where a package lies: a folder, or the module that pip installed; nothing is imported."""
    if (base / name).is_dir():
        return base / name
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or spec.origin is None:
        raise VortexError(f"no pattern {name!r} is installed, and there is no such folder; install it with pip")
    return Path(spec.origin).parent
