"""What vLLM calls in each of its processes (through a package's entry point): the backends are named, not loaded.

Nothing changes for an engine that names no pattern. vLLM's CPU platform takes no attention backend but its own, so that
one's name is made to mean ours, and on a GPU FlashAttention's is; `VLLM_PLUGINS=` keeps every plugin out.
"""

from __future__ import annotations

from vortexlab.deploy import engines
from vortexlab.dsl.errors import VortexError

#: The stock backend's name -> ours.
BACKENDS = {
    "CPU_ATTN": "vortexlab.deploy.vllm.cpu.SparseBackend",
    "FLASH_ATTN": "vortexlab.deploy.vllm.cuda.SparseBackend",
}
_WITHOUT = "start it with VLLM_PLUGINS= to do without sparse patterns"


def register() -> None:
    """Puts the sparse backends in the place of the stock ones. Repeating it is harmless.

    Raises `VortexError` for a vLLM outside the tested range, and when it has no such registry.
    """
    import vllm

    engines.check_version(engines.find("vllm"), vllm.__version__, _WITHOUT)
    try:
        from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

        for name, path in BACKENDS.items():
            register_backend(AttentionBackendEnum[name], path)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise VortexError(
            f"vLLM's registry of attention backends has moved ({error}); install a vLLM that this release was tested "
            f"with (docs/deploy.md), or {_WITHOUT}"
        ) from error
