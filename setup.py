"""Lists the packages and their data; everything else is declared in pyproject.toml.

The mapping of folders to subpackages (``kernels/`` is ``vortexlab.kernels``) rules out setuptools' own discovery, so
the folders are walked here: a folder that holds a Python file is a package, with or without an ``__init__.py``, and
the data files below it belong to the nearest package above them. New folders need no entry anywhere.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
DATA_SUFFIXES = {".txt", ".xz", ".json", ".jsonl", ".safetensors", ".md", ".toml", ".html", ".css", ".js", ".typed"}


def walk(name: str, folder: Path) -> dict[str, list[str]]:
    """Packages below `folder`, imported as `name`, each with its data files as paths relative to the package."""
    found: dict[str, list[str]] = {}
    owner: dict[Path, tuple[str, Path]] = {}
    for where, subfolders, files in os.walk(folder):
        subfolders[:] = sorted(s for s in subfolders if s != "__pycache__" and not s.startswith("."))
        here = Path(where)
        parts = here.relative_to(folder).parts
        is_package = any(f.endswith(".py") for f in files) and all(part.isidentifier() for part in parts)
        if here == folder or is_package:
            owner[here] = (".".join((name, *parts)), here)
        else:
            owner[here] = owner[here.parent]
        package, base = owner[here]
        data = found.setdefault(package, [])
        data += [(here / f).relative_to(base).as_posix() for f in sorted(files) if Path(f).suffix in DATA_SUFFIXES]
    return found


def contents() -> dict[str, list[str]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found: dict[str, list[str]] = {}
    for name, folder in settings["tool"]["setuptools"]["package-dir"].items():
        found |= walk(name, ROOT / folder)
    return dict(sorted(found.items()))


packages = contents()
setup(packages=list(packages), package_data=packages, include_package_data=False)
