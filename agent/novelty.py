"""Novelty by behaviour: which tokens a program reads on a fixed trace, whatever its text.

The trace is the newest token of one context of the shipped model, in all layers. Programs are compared by structure: a
knob has its default, except that no count of pages is above an eighth of the trace's, since a budget that reads
everything tells nothing apart. A program that reads what a known one reads is worth a slot only if it costs less.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Container, Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from vortexlab.agent.study import PAGE_COUNTS
from vortexlab.dsl import structure_hash
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Attr, Program
from vortexlab.evaluator import costs
from vortexlab.evaluator.config import REFERENCE_MODEL
from vortexlab.evaluator.geometries import find_geometry
from vortexlab.evaluator.traces import Traces, mean_pages, newest_token, pages_read
from vortexlab.search_spaces.ablations import Ablation, ablations
from vortexlab.search_spaces.parsed import parsed

_DEVICE, _GEOMETRY, _BATCH_TOKENS = "h200", "qwen3-8b", 1 << 20
_SHARE = 8  # of the trace's pages at most one in so many is read by count
_PARTS = 4  # of a program, tried for whether it reads the same without them
_CHEAPER = 0.98  # of the predicted time: less than that is worth a slot


@dataclass(frozen=True)
class Behaviour:
    """`tokens`: a digest of the tokens read by every layer and query head. `seconds`: predicted for a step."""

    tokens: str
    seconds: float


@cache
def _trace() -> Traces:
    return newest_token(Path(REFERENCE_MODEL))


@cache
def behaviour(source: str) -> Behaviour | None:
    """None for what one decode step does not show: a program that carries something on, attends or prefills by itself,
    or cannot be run here."""
    program, traces = parsed(source), _trace()
    try:
        bound = program.bind(_knobs(program, int(traces.lengths[0])))
        if bound.has_memory or bound.params or bound.result is not None or bound.pooled is not None:
            return None
        masks = pages_read(traces, bound)
        pages = mean_pages(masks)
        found = costs.predictions(
            bound, find_geometry(_GEOMETRY), traces.layers, (int(traces.lengths[0]),), _BATCH_TOKENS, _DEVICE,
            {str(int(traces.lengths[0])): [max(1, round(pages))]},
        )  # fmt: skip
    except (VortexError, RuntimeError):
        return None
    total = hashlib.sha256()
    heads = traces.q.shape[3] // traces.k.shape[1]
    for mask in masks:
        tokens = mask.repeat_interleave(bound.page_size, -1)[..., : int(traces.lengths[0])]
        total.update(tokens.expand(-1, -1, heads, -1).contiguous().numpy().tobytes())
    return Behaviour(total.hexdigest(), sum(item["seconds"] for item in found.values()))


def _knobs(program: Program, tokens: int) -> dict[str, Attr]:
    page = program.bind().page_size
    limit = max(1, tokens // (_SHARE * page))
    values: dict[str, Attr] = {}
    for name in PAGE_COUNTS:
        knob = program.knobs.get(name)
        if knob is not None and knob.kind == "int" and knob.low is not None:
            values[name] = max(int(knob.low), min(int(knob.default), limit))  # type: ignore[arg-type]
    return values


def is_worth_a_slot(source: str, known: Iterable[str]) -> bool:
    """Whether no program of `known` (texts) reads the same at no higher predicted cost."""
    own = behaviour(source)
    if own is None:
        return True
    for text in known:
        other = behaviour(text)
        if other is not None and other.tokens == own.tokens and own.seconds >= _CHEAPER * other.seconds:
            return False
    return True


@lru_cache(maxsize=512)
def _less_a_part(source: str) -> list[tuple[str, Ablation]]:
    """The smallest ablations with their structures; none of a program that cannot be taken apart."""
    try:
        return [(structure_hash(parsed(item.source)), item) for item in ablations(source)]
    except VortexError:
        return []


def simpler(source: str, known: Container[str], rng: random.Random) -> Ablation | None:
    """The program less a part that changes nothing of what it reads on the trace and costs something; None where a few
    parts, drawn with `rng`, have been tried in vain. `known`: structures that are not wanted.
    """
    own = behaviour(source)
    if own is None:
        return None
    parts = [item for structure, item in _less_a_part(source) if structure not in known]
    for item in rng.sample(parts, min(_PARTS, len(parts))):
        less = behaviour(item.source)
        if less is not None and less.tokens == own.tokens and less.seconds < own.seconds:
            return item
    return None
