"""Installs an exported package into a folder of its own, as pip does for a user."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from vortexlab.dsl.errors import VortexError


def install(folder: Path, target: Path, python: str = sys.executable) -> None:
    """``pip install --target`` by the given Python, without its dependencies and without a network.

    Raises `VortexError` with pip's last line when that fails.
    """
    with tempfile.TemporaryDirectory(prefix="vortex-install-") as scratch:
        copy = Path(scratch) / "package"  # a build leaves files beside its sources
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
        words = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(target), str(copy)]
        try:
            done = subprocess.run([python, "-m", "pip", *words], capture_output=True, text=True, check=False)
        except OSError as error:
            raise VortexError(f"cannot run {python} ({error.strerror}); name the engine's interpreter") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise VortexError(f"pip cannot install {folder} with {python}: {last[:300]}")
