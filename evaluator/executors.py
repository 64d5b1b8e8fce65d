"""Which executor runs programs on a device, and two that exist for comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import SET, Node, Program, Static, Type
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import Executor, PageLists
from vortexlab.kernels.memory import Carry
from vortexlab.kernels.torch_executor import TorchExecutor
from vortexlab.kernels.torch_select import reversed_ties

#: Dense attention as a program, which runs the same path as all others. Large pages make its lists short.
EVERYTHING = Program(name="everything", page=128, nodes=(Node("everything", Type(SET)),), fields={}, output=0)


def everything_of(program: Program) -> Program:
    """Dense attention over a cache of the precision that the program's is in."""
    return replace(EVERYTHING, kv_dtype=program.kv_dtype)


#: Makes the executor of a bound program for one layer.
Make = Callable[[Program, Static], Any]


#: Compute capability from which the kernels are compiled: tensor cores for bf16, asynchronous copies.
LEAST_CAPABILITY = (8, 0)


def check_device(device: str) -> None:
    """Raises `VortexError` where `device` is a GPU that is not there, or too old for the kernels."""
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise VortexError(f"device {device!r} was asked for but torch finds no GPU; use --device cpu")
    found = torch.cuda.get_device_capability()
    if torch.version.hip is None and found < LEAST_CAPABILITY:
        raise VortexError(
            f"{torch.cuda.get_device_name()} has compute capability {found[0]}.{found[1]}, and the kernels need "
            f"{LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]} (NVIDIA Ampere) or newer; use --device cpu"
        )


def try_device(device: str) -> None:
    """One step of dense attention on a tiny cache: raises whatever does where a driver or a compiler cannot work."""
    k, v = (torch.ones(1, EVERYTHING.page_size, 32, device=device) for _ in range(2))
    cache = PagedKV.from_contiguous(k, v, [0], [EVERYTHING.page_size], EVERYTHING.page_size)
    executor = executor_for(device)(EVERYTHING, Static(1, 1, 32, 1.0))
    out, _ = executor.decode(torch.ones(1, 1, 32, device=device), executor.new_state(cache), cache)
    if not bool((out == 1).all()):
        raise VortexError(f"device {device!r} computes wrong numbers: the mean of ones is {float(out.mean()):g}")


def executor_for(device: str) -> Make:
    """The torch executor on the CPU; on a GPU the Triton executor, or the torch executor for what it does not cover."""
    if device == "cpu":
        return TorchExecutor
    try:
        from vortexlab.kernels.gpu.coverage import uncovered
        from vortexlab.kernels.gpu.executor import TritonExecutor
    except ImportError as error:
        raise VortexError(f"device {device!r} needs Triton, which cannot be imported here: {error}") from error

    def made(program: Program, static: Static) -> Any:
        return TorchExecutor(program, static) if uncovered(program, static) else TritonExecutor(program, static)

    return made


def new_memories(program: Program, executors: Sequence[Executor], caches: Sequence[PagedKV]) -> list[Any]:
    """For every layer what the requests of its cache will carry on; None where the program remembers nothing."""
    carry = Carry()
    return [
        executor.new_memory(cache, carry=carry) if program.has_memory else None
        for executor, cache in zip(executors, caches, strict=True)
    ]


def decode(executor: Executor, q: Tensor, state: Any, cache: PagedKV, memory: Any) -> tuple[Tensor, PageLists]:
    """One decode step of one layer; `memory` is that of `new_memories`."""
    return executor.decode(q, state, cache) if memory is None else executor.decode(q, state, cache, memory)


class ReversedTies(TorchExecutor):
    """The torch executor with the other order of equal scores: what it selects otherwise, ties decided."""

    def select_forward(self, q: Tensor, state: Any, cache: PagedKV, memory: Any = None) -> PageLists:
        """In the order of the language, the smaller page first."""
        return super().select(q, state, cache, memory)

    def select(self, q: Tensor, state: Any, cache: PagedKV, memory: Any = None) -> PageLists:
        with reversed_ties():
            return super().select(q, state, cache, memory)

    def decode(self, q: Tensor, state: Any, cache: PagedKV, memory: Any = None) -> tuple[Tensor, PageLists]:
        with reversed_ties():
            return super().decode(q, state, cache, memory)
