"""What vLLM calls in each of its processes (entry point `vllm.general_plugins`): the backend is named, not loaded.

Nothing changes for an engine that was given no program. vLLM's CPU platform takes no attention backend but its own, so
that one's name is made to mean ours; `VLLM_PLUGINS=` keeps every plugin out.
"""

from __future__ import annotations

from vortexlab.dsl.errors import VortexError

BACKEND = "vortexlab.deploy.vllm.backend.SparseBackend"


def register() -> None:
    """Puts the sparse backend in the place of the stock CPU one. Repeating it is harmless.

    Raises `VortexError` when this vLLM has no such registry.
    """
    try:
        from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

        register_backend(AttentionBackendEnum.CPU_ATTN, BACKEND)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise VortexError(
            f"vLLM's registry of attention backends has moved ({error}); install a vLLM that this release was tested "
            "with (docs/deploy.md), or run it with VLLM_PLUGINS= to do without sparse patterns"
        ) from error
