"""Learned constants: named tensors in one safetensors file, read when they are needed and checked when they are.

torch is loaded with the first tensor, since programs are parsed without it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vortexlab.dsl.errors import VortexError

if TYPE_CHECKING:
    from torch import Tensor

    from vortexlab.dsl.ir import Param, Program, Static

#: Whole numbers of a file stay within this magnitude, exact in fp32 and int32.
INT_LIMIT = 2**30


@dataclass(frozen=True)
class Parameters:
    """The content of one safetensors file; `digest` (SHA-256 of the file) stands for it in every hash.

    `held` are tensors that are in no file, see `of`.
    """

    path: str
    digest: str
    held: Mapping[str, Tensor] | None = field(default=None, compare=False, repr=False)

    @staticmethod
    def open(path: str | Path) -> Parameters:
        """Raises `VortexError` when the file cannot be read."""
        try:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            what = f"cannot read the parameters {path}: {error.strerror}"
            raise VortexError(f"{what}; give a safetensors file") from error
        return Parameters(str(Path(path).resolve()), digest)

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> Parameters:
        """Parameters in memory, for use in this process; the digest is that of the file they would be."""
        from safetensors.torch import save

        return Parameters("(in memory)", hashlib.sha256(save(dict(tensors))).hexdigest(), dict(tensors))

    def tensors(self) -> Mapping[str, Tensor]:
        """All tensors of the file, on the CPU. Raises `VortexError` when it is damaged or has changed."""
        return _load(self.path, self.digest) if self.held is None else self.held

    def to_json(self) -> dict[str, Any]:
        return {"path": self.path, "digest": self.digest}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Parameters:
        return Parameters(data["path"], data["digest"])


@functools.lru_cache(maxsize=8)
def _load(path: str, digest: str) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found = Parameters.open(path)
    if found.digest != digest:
        raise VortexError(f"the parameters {path} have changed since the program was bound; bind it again")
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise VortexError(f"the parameters {path} are no safetensors file: {str(error)[:120]}") from error


def parameter(program: Program, name: str, static: Static, kv: int) -> Tensor:
    """One parameter as one layer and KV head see it: fp32 or int64, of the parameter's axes in stored order.

    Raises `VortexError` when the program has no parameters, or the file does not hold this one as declared.
    """
    param = program.params[name]
    tensor = _checked(program, param, static)
    if param.per_layer:
        tensor = tensor[static.layer]
    if param.per_kv_head:
        tensor = tensor[kv]
    return tensor


def check_parameters(program: Program, static: Static) -> None:
    """Raises `VortexError` when a parameter that the program uses is missing, misshapen or not finite."""
    used = {str(program.nodes[i].attrs["name"]) for i in program.live() if program.nodes[i].op == "param"}
    for name in sorted(used):
        _checked(program, program.params[name], static)


def expected_shape(param: Param, static: Static, page: int) -> dict[str, int]:
    """The axes of the tensor in the file, in order, with their lengths."""
    width = {"head": static.group, "channel": static.head_dim, "token": page, **param.sizes}
    return {
        **({"layer": static.layers} if param.per_layer else {}),
        **({"kv_head": static.kv_heads} if param.per_kv_head else {}),
        **{axis: width[axis] for axis in param.axes},
    }


def _checked(program: Program, param: Param, static: Static) -> Tensor:
    if program.parameters is None:
        raise VortexError(
            f"program {program.name} has the parameter {param.name}, and no file of parameters is given; "
            "give --parameters FILE.safetensors"
        )
    shape = expected_shape(param, static, program.page_size)
    return _verified(program.parameters, param.tensor, param.kind, tuple(shape.items()))


@functools.lru_cache(maxsize=256)
def _verified(parameters: Parameters, key: str, kind: str, shape: tuple[tuple[str, int], ...]) -> Tensor:
    """A tensor of the file in the precision that programs compute in."""
    import torch

    path, tensors = parameters.path, parameters.tensors()
    if key not in tensors:
        raise VortexError(
            f"the parameters {path} have no tensor {key!r}; they have {', '.join(sorted(tensors)[:8]) or 'none'}"
        )
    tensor = tensors[key]
    sizes = tuple(size for _, size in shape)
    if tuple(tensor.shape) != sizes:
        axes = ", ".join(f"{axis} {size}" for axis, size in shape)
        raise VortexError(
            f"the parameter {key} of {path} has the shape {list(tensor.shape)}; expected {list(sizes)}: [{axes}]"
        )
    if kind == "int":
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            raise VortexError(f"the parameter {key} of {path} is of {_word(tensor)}; expected whole numbers, int32")
        if tensor.numel() and int(tensor.long().abs().max()) > INT_LIMIT:
            raise VortexError(f"the parameter {key} of {path} has a number beyond {INT_LIMIT}; use smaller ones")
        return tensor.long()
    if not tensor.is_floating_point():
        raise VortexError(f"the parameter {key} of {path} is of {_word(tensor)}; expected floats, float32")
    tensor = tensor.float()
    if not bool(torch.isfinite(tensor).all()):
        wrong = int((~torch.isfinite(tensor)).sum())
        raise VortexError(f"the parameter {key} of {path} has {wrong} numbers that are not finite in fp32")
    return tensor


def _word(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
