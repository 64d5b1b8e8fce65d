"""Which executor serves a program on a device."""

from __future__ import annotations

import torch

from vortexlab.dsl.ir import Program, Static
from vortexlab.kernels.executor import Executor


def executor_for(device: torch.device, program: Program, static: Static) -> type[Executor]:
    """The executor of a device: Triton on a GPU for what it covers, torch elsewhere."""
    if device.type == "cuda":
        from vortexlab.kernels.gpu.coverage import uncovered
        from vortexlab.kernels.gpu.executor import TritonExecutor

        if not uncovered(program, static):
            return TritonExecutor
    from vortexlab.kernels.torch_executor import TorchExecutor

    return TorchExecutor
