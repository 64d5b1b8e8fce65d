"""Generated source on disk, named by its content, and imported once per process."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import triton

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import IR_VERSION
from vortexlab.kernels import disk
from vortexlab.kernels.disk import kernel_folder


def source_key(text: str) -> str:
    """Name of a generated module: its text, the language's and Triton's versions."""
    return hashlib.sha256(f"{IR_VERSION}\0{triton.__version__}\0{text}".encode()).hexdigest()[:32]


def replace_text(path: Path, text: str, what: str = "generated kernels") -> None:
    """Writes a file whole or not at all; several processes may do so at once. `what`: what is in it, for the message.

    Raises `VortexError` when the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.replace(path, text.encode())
    except OSError as error:
        raise VortexError(
            f"{what} cannot be written to {path.parent} ({error.strerror}); set VORTEX_CACHE_DIR to a "
            "folder that can be written"
        ) from error


def store_source(text: str) -> Path:
    """Writes the text under its name unless it is there. Raises `VortexError` when the folder cannot be written."""
    path = kernel_folder() / f"k{source_key(text)}.py"
    if path.is_file() and path.read_text() == text:
        disk.touch(path)
    else:
        replace_text(path, text)
        disk.trim(disk.generated(), disk.KERNELS_CAP)
    return path


def load_source(text: str) -> ModuleType:
    """The module of a generated text."""
    name = f"vortexlab_generated_{source_key(text)}"
    if name not in sys.modules:
        path = store_source(text)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]
