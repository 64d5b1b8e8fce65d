"""Learned constants: named tensors in one safetensors file, read when they are needed and checked when they are."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vortexlab.dsl.errors import VortexError


@dataclass(frozen=True)
class Parameters:
    """The content of one safetensors file; `digest` (SHA-256 of the file) stands for it in every hash."""

    path: str
    digest: str

    @staticmethod
    def open(path: str | Path) -> Parameters:
        """Raises `VortexError` when the file cannot be read."""
        try:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise VortexError(f"cannot read the parameters {path}: {error.strerror}; give a safetensors file") from error
        return Parameters(str(Path(path).resolve()), digest)

    def tensors(self) -> Mapping[str, Tensor]:
        """All tensors of the file, on the CPU. Raises `VortexError` when it is damaged or has changed."""
        return _load(self.path, self.digest)

    def to_json(self) -> dict[str, Any]:
        return {"path": self.path, "digest": self.digest}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Parameters:
        return Parameters(data["path"], data["digest"])


@functools.lru_cache(maxsize=8)
def _load(path: str, digest: str) -> Mapping[str, Tensor]:
    found = Parameters.open(path)
    if found.digest != digest:
        raise VortexError(f"the parameters {path} have changed since the program was bound; bind it again")
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise VortexError(f"the parameters {path} are no safetensors file: {str(error)[:120]}") from error


def finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.double()).all())
