"""A model whose own `generate` and forward pass run a pattern: they are given its cache where the caller gives none.

Only public entries of the one model are touched: `generate` (which takes a cache from its caller), a forward hook, and
the entries of continuous batching, which would change the attention and are refused.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, field
from types import MethodType
from typing import TYPE_CHECKING, Any

from vortexlab.deploy.huggingface.cache import Reading
from vortexlab.dsl.errors import VortexError

if TYPE_CHECKING:
    from vortexlab.deploy.huggingface.pattern import Pattern

_HELD = "_vortex_attached"
#: What the cache is called: from transformers 5.24 on, and before.
_CACHES = ("cache", "past_key_values")
#: Continuous batching has a cache and attention functions of its own.
_BATCHING = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")


@dataclass
class Attached:
    """The pattern of a model, and what the steps of all caches that were made for it read."""

    pattern: Pattern
    total: Reading = field(default_factory=Reading)


def attach(model: Any, pattern: Pattern) -> None:
    """Makes the model's calls use the pattern; an earlier one is replaced, and the same one is left alone."""
    held: Attached | None = getattr(model, _HELD, None)
    if held is not None and held.pattern is pattern:
        return
    setattr(model, _HELD, Attached(pattern))
    if held is not None:
        return
    model.generate = MethodType(functools.wraps(type(model).generate)(_generate), model)
    for name in _BATCHING:
        if hasattr(model, name):
            setattr(model, name, MethodType(functools.wraps(getattr(type(model), name))(_refuse_batching), model))
    model.register_forward_pre_hook(_with_cache, with_kwargs=True)


def total_of(model: Any) -> Reading | None:
    held: Attached | None = getattr(model, _HELD, None)
    return held.total if held is not None else None


def _active(model: Any) -> Attached | None:
    """None while other attention was chosen for the model."""
    held: Attached = getattr(model, _HELD)
    return held if model.config._attn_implementation == held.pattern.name else None


def _generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    """`generate` with a fresh cache where the caller gives none."""
    plain = type(model).generate
    held = _active(model)
    if held is None:
        return plain(model, *args, **kwargs)
    _check(model, inspect.signature(plain).bind(model, *args, **kwargs).arguments)
    if all(kwargs.get(name) is None for name in _CACHES):
        kwargs = {**_without_caches(kwargs), _cache_name(model): held.pattern.cache(model.config, held.total)}
    return plain(model, *args, **kwargs)


def _check(model: Any, given: dict[str, Any]) -> None:
    """Raises `VortexError` for settings of a generation that a pattern cannot follow."""
    more, config = given.get("kwargs", {}), given.get("generation_config")

    def setting(name: str) -> Any:
        found = [more.get(name), getattr(config, name, None), getattr(model.generation_config, name, None)]
        return next((value for value in found if value is not None), None)

    if (setting("num_beams") or 1) > 1:
        raise VortexError("beam search is not supported with a sparse pattern; use greedy search or sampling")
    if setting("use_cache") is False:
        raise VortexError("use_cache=False would read everything densely at every step; a pattern runs with its cache")
    if setting("cache_implementation") is not None:
        raise VortexError(
            f"cache_implementation={setting('cache_implementation')!r} is not a pattern's cache; leave it out"
        )
    if setting("prefill_chunk_size") is not None:
        raise VortexError("a pattern reads a prompt densely in one piece; leave prefill_chunk_size out")
    if given.get("assistant_model") is not None or setting("prompt_lookup_num_tokens"):
        raise VortexError(
            "speculative decoding reads its first candidates together with the prompt, and so densely; leave the "
            "assistant or the look-up out"
        )


def _with_cache(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
    """The forward hook: a call without a cache is a prompt of its own."""
    held = _active(model)
    if held is None or any(kwargs.get(name) is not None for name in _CACHES):
        return None
    if kwargs.get("use_cache") is False:
        raise VortexError("use_cache=False would read everything densely at every step; a pattern runs with its cache")
    name = _cache_name(model)
    place = list(inspect.signature(model.forward).parameters).index(name)
    if len(args) <= place:
        return args, {**_without_caches(kwargs), name: held.pattern.cache(model.config, held.total)}
    if args[place] is not None:
        return None
    return (*args[:place], held.pattern.cache(model.config, held.total), *args[place + 1 :]), kwargs


def _without_caches(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key not in _CACHES}


def _cache_name(model: Any) -> str:
    parameters = inspect.signature(model.forward).parameters
    for name in _CACHES:
        if name in parameters:
            return name
    raise VortexError(f"{type(model).__name__} takes no cache; a pattern cannot run in it")


def _refuse_batching(model: Any, *args: Any, **kwargs: Any) -> Any:
    raise VortexError(
        "continuous batching in transformers runs its own attention functions over its own cache, and would leave the "
        "pattern out; use generate() with a padded batch, or deploy to vLLM"
    )
