"""What SGLang calls in each of its processes (entry point `sglang.srt.plugins`): a pattern becomes a backend.

The backend has the package's name, and a server is asked for it by that name, so one whose plugin has failed (SGLang
logs that and goes on) does not start: it knows no such backend. What replaces the asked backend while the arguments are
resolved is found when the model is loaded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vortexlab.deploy import engines, package
from vortexlab.dsl.errors import VortexError

ENGINE = engines.find("sglang")
#: What is watched: after it, a model's attention backend is made.
MADE = "sglang.srt.model_executor.model_runner.ModelRunner.init_attention_backends"
#: `off`: every decode step is sparse, whatever the package's dense gate says.
GATE = "VORTEX_GATE"
_registered: set[str] = set()


def register(name: str, folder: Path) -> None:
    """Makes the package in `folder` the attention backend `name`. Repeating it is harmless.

    Nothing is loaded but names. Raises `VortexError` when this SGLang is another release, or its registry has moved.
    """
    if name in _registered:
        return
    import sglang

    without = "start SGLang with SGLANG_PLUGINS=none to do without sparse patterns"
    engines.check_version(ENGINE, sglang.__version__, without)
    try:
        from sglang.srt.layers.attention.attention_registry import register_attention_backend
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType
        from sglang.srt.server_args import add_attention_backend_choices

        if not _registered:
            HookRegistry.register(MADE, check_active, HookType.AFTER)
        register_attention_backend(name)(lambda runner: made(name, folder, runner))
        add_attention_backend_choices([name])
    except (ImportError, AttributeError, TypeError) as error:
        raise VortexError(f"SGLang's registry of attention backends has moved ({error}); {without}") from error
    _registered.add(name)


def made(name: str, folder: Path, runner: Any) -> Any:
    """The backend of a package for a model that is loaded. Raises `VortexError` where they do not go together."""
    wanted = os.environ.get(GATE, "on")
    if wanted not in ("on", "off"):
        raise VortexError(f"{GATE} is on or off, not {wanted!r}")
    found = package.read(folder)
    engines.check_program(found.program, ENGINE)
    from vortexlab.deploy.sglang.backend import SparseBackend
    from vortexlab.deploy.sglang.checks import Pattern

    return SparseBackend(runner, Pattern(name, found.program, found.gate if wanted == "on" else None))


def check_active(_: Any, runner: Any) -> None:
    """Raises `VortexError` when a server was asked for a pattern and runs another attention."""
    given = runner.server_args  # as it was asked; what resolution decides lies over it
    asked = {given.attention_backend, given.prefill_attention_backend, given.decode_attention_backend} & _registered
    if asked:
        from vortexlab.deploy.sglang.backend import SparseBackend

        if not isinstance(runner.attn_backend, SparseBackend):
            raise VortexError(
                f"the server was asked for {', '.join(sorted(asked))} and runs {type(runner.attn_backend).__name__}; "
                "SGLang's log says why it chose another attention backend"
            )
