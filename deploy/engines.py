"""The serving engines that a winner can be exported to: what a package for each needs, and what none of them runs."""

from __future__ import annotations

from dataclasses import dataclass

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import FP8, Program


@dataclass(frozen=True)
class Engine:
    """An engine as a package sees it.

    `title`: its name in sentences. `versions`: the releases that it was written for, as a half-open range. `requires`:
    what pip installs for the package; empty for an engine whose builds have several names, which is checked when it
    starts. `plugins`: the entry-point group through which the engine finds the package; empty where users import it.
    `carries`: whether it says which request a row belongs to, so that a program may carry something from step to step.
    """

    name: str
    title: str
    versions: tuple[str, str]
    requires: tuple[str, ...] = ()
    plugins: str = ""
    carries: bool = True


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("transformers", "Hugging Face transformers", ("5.17", "6"), requires=("transformers>=5.17,<6",)),
        Engine("vllm", "vLLM", ("0.32", "0.34"), plugins="vllm.general_plugins"),
        Engine(
            "sglang",
            "SGLang",
            ("0.5.23", "0.5.24"),
            requires=("sglang>=0.5.23,<0.5.24",),
            plugins="sglang.srt.plugins",
            carries=False,
        ),
    )
}


def find(name: str) -> Engine:
    """Raises `VortexError` for an engine that no package is written for."""
    if name not in ENGINES:
        raise VortexError(f"cannot export to {name!r}; this release exports to: {', '.join(ENGINES)}")
    return ENGINES[name]


def check_version(engine: Engine, version: str, without: str) -> None:
    """Raises `VortexError` for a release outside the engine's range; `without` says how to do without the package."""
    low, high = (_numbers(bound) for bound in engine.versions)
    if not low <= _numbers(version) < high:
        raise VortexError(
            f"this package runs in {engine.title} >= {engine.versions[0]}, < {engine.versions[1]}, and {version} is "
            f"installed; install one of those, or {without}"
        )


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a release, such as (0, 32) of 0.32.0rc1: a candidate of 0.32 counts as 0.32."""
    found: list[int] = []
    for part in version.split("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        found.append(int(digits))
        if digits != part:
            break
    return tuple(found)


def check_program(program: Program, engine: Engine) -> None:
    """Raises `VortexError` when the engine cannot run the bound program as it was measured."""

    def fault(what: str) -> VortexError:
        return VortexError(f"program {program.name} cannot be exported to {engine.name}: {what}")

    if program.params and program.parameters is None:
        raise fault("it has parameters; give --parameters FILE.safetensors")
    if program.reads_latent:
        raise fault("it reads ctx.latent, and this engine hands over keys of every head, not latent ones")
    if program.kv_dtype in FP8:
        raise fault(f"it wants a KV cache in {program.kv_dtype}, and this engine keeps the model's precision")
    if program.has_memory and not engine.carries:
        raise fault(
            f"it carries something from step to step, and {engine.title} does not say which request a row belongs to; "
            "deploy it with transformers, or choose a program without memory and reuse"
        )
