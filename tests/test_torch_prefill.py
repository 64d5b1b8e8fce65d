"""Prefill over blocks of queries, latent caches and fp8 on the torch executor, against the reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.step_cases import check_prefill, check_steps, close, model, with_parameters
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.dsl.parser import parse
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.torch_executor import TorchExecutor

STATIC = Static(kv_heads=2, group=2, head_dim=8, scale=0.25, layers=2)
MLA = Static(kv_heads=1, group=4, head_dim=12, scale=0.25, layers=2, latent=8)

POOL = "q.slice(query, -1).max(query)"
PROGRAMS = {
    "last query": (POOL, "dot(q, s.c, channel).max(head)", "topk(score, 2) | first(1)", ""),
    "maximum of queries": ("q.max(query)", "dot(q, s.c, channel).max(head)", "topk(score, 2)", ""),
    "lists of query heads": ("q.sum(query)", "dot(q, s.c, channel)", "topk(score, 1)", ""),
    "one query for all heads": (
        "0.0 * q.sum(query) + q.sum(query).max(head)", "dot(q, s.c, channel).max(head)", "topk(score, 2)", "",
    ),
    "positions of queries": ("(q * q.index(query)).sum(query)", "dot(q, s.c, channel).max(head)", "topk(score, 1)", ""),
    "by phase": (
        POOL, "dot(q, s.c, channel).max(head)", "where(ctx.prefill, topk(score, ctx.pages // 3), last(2))", "",
    ),
    "random pages": (POOL, "dot(q, s.c, channel).max(head)", "random(2) | stride(3)", ""),
    "weights and entries": (
        POOL, "dot(q, s.c, channel).max(head)", "topk(score, 1)",
        """
    def attend(q, s, score, pages):
        w = dot(q, s.c, channel) / 8
        both = attention(pages, keys=s.c, values=s.v, among=~pages, log_weight=score / 8, entry_log_weight=w)
        g = sigmoid(dot(q, gate, channel))
        return g * both + (1 - g) * attention(first(1), log_weight=w)
""",
    ),
    "layer memory": (
        POOL, "dot(q, s.c, channel).max(head) + m.below + m.mine", "reuse(topk(score, 2), layers=ctx.layer == 0)",
        """
    def remember(score):
        return dict(below=score, mine=score)
""",
    ),
    "a set kept over steps": (POOL, "dot(q, s.c, channel).max(head)", "reuse(topk(score, 1), every=8)", ""),
}  # fmt: skip


def program(name: str, block: int, page: int = 4) -> Program:
    pool, score, select, more = PROGRAMS[name]
    m = ", m" if "m." in score else ""
    text = f"""from vortexlab.dsl import *


@program(page={page}, block={block})
class P:
    gate = param(head, channel)
    below = memory.layer(page, init=1.0)
    mine = memory.step(page, init=2.0)

    def pool(q):
        return {pool}

    def summarize(k, v):
        return dict(c=k.sum(token), v=v.mean(token))

    def score(q, s{m}):
        return {score}

    def select(score, ctx):
        return {select}
{more}"""
    if "remember" not in more:
        text = text.replace("    below = memory.layer(page, init=1.0)\n    mine = memory.step(page, init=2.0)\n", "")
    return parse(text).bind()


@pytest.mark.parametrize(("block", "page"), [(8, 4), (4, 4), (2, 4)])
@pytest.mark.parametrize("name", PROGRAMS)
def test_prefill(name: str, block: int, page: int, tmp_path: Path) -> None:
    bound = with_parameters(program(name, block, page), STATIC, tmp_path)
    assert check_prefill(model(bound, STATIC, [27, 1, 18], 27, seed=7)) == []


def test_dense_prefill() -> None:
    text = "from vortexlab.dsl import *\n\n\n@program(page=4)\nclass P:\n    def select(): return last(1)\n"
    bound = parse(text).bind()
    for static in (STATIC, MLA):
        assert check_prefill(model(bound, static, [19, 6], 19, real=True)) == []


def test_what_follows_a_block_changes_nothing_in_it(tmp_path: Path) -> None:
    bound = with_parameters(program("weights and entries", 8), STATIC, tmp_path)
    case = model(bound, STATIC, [0], 40, real=True)
    executor = TorchExecutor(bound, STATIC)
    q = case.q[:, 0].permute(1, 2, 0, 3)
    whole, lists = executor.prefill(q, PagedKV.from_dense(case.keys[0], case.values[0], 4))
    for end in (16, 24):
        short = PagedKV.from_dense([k[:, :end] for k in case.keys[0]], [v[:, :end] for v in case.values[0]], 8)
        out, of_blocks = executor.prefill(q[:, :, :end], short)
        assert close(out, whole[:, :, :end], 1e-6)
        assert [item.to_list() for item in of_blocks] == [item.to_list() for item in lists[: end // 8]]


def test_prefill_needs_a_query_for_every_token() -> None:
    case = model(program("last query", 8), STATIC, [20], 20)
    cache = PagedKV.from_dense(case.keys[0], case.values[0], 4)
    with pytest.raises(VortexError, match="a query for each of 40 tokens"):
        TorchExecutor(case.program, STATIC).prefill(case.q[:, 0].permute(1, 2, 0, 3), cache)


# latent caches

LATENT = {
    "the whole key": "dot(q, s.c, channel).max(head)",
    "the latent part": "dot(q.slice(channel, 0, ctx.latent), s.c.slice(channel, 0, ctx.latent), channel).max(head)",
    "values": "dot(q.slice(channel, 0, ctx.latent), s.v, channel).max(head)",
    "the rotary part": "dot(q.slice(channel, ctx.latent), s.c.slice(channel, ctx.latent), channel).max(head)",
}


@pytest.mark.parametrize("name", LATENT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latent_cache(name: str, dtype: torch.dtype) -> None:
    text = f"""from vortexlab.dsl import *


@program(page=4, block=8)
class P:
    def pool(q): return {POOL}

    def summarize(k, v): return dict(c=k.sum(token), v=v.sum(token))

    def score(q, s, ctx): return {LATENT[name]}

    def select(score): return topk(score, 2)
"""
    bound = parse(text).bind()
    case = model(bound, MLA, [25, 14], 4, dtype=dtype)
    cache = PagedKV.from_dense([k.clone() for k in case.keys[0]], case.values[0], 4)
    assert not cache.is_shared and PagedKV.from_dense(case.keys[0], case.values[0], 4).is_shared
    assert check_steps(case) == []
    assert check_prefill(model(bound, MLA, [25, 14], 25, dtype=dtype)) == []


def test_a_cache_of_another_width_is_refused() -> None:
    bound = program("last query", 8)
    case = model(bound, MLA, [20], 2)
    with pytest.raises(VortexError, match="keys of 12 and values of 8 channels"):
        TorchExecutor(bound, STATIC).new_state(PagedKV.from_dense(case.keys[0], case.values[0], 4))


# fp8

FP8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


@pytest.mark.parametrize("name", FP8)
@pytest.mark.parametrize("summaries", ["kv", "fp8_e4m3", "fp8_e5m2", "fp16"])
def test_fp8(name: str, summaries: str) -> None:
    text = f"""from vortexlab.dsl import *


@program(page=4, kv="fp8_{name}", summaries="{summaries}")
class P:
    def summarize(k): return dict(lo=k.min(token), hi=k.max(token), c=k.sum(token))

    def score(q, s):
        return maximum(q * s.lo, q * s.hi).sum(channel).max(head) + 0.01 * dot(q, s.c, channel).max(head)

    def select(score): return topk(score, 2)
"""
    bound = parse(text).bind()
    assert check_steps(model(bound, STATIC, [1, 30, 17], 4, real=True, dtype=FP8[name], seed=3)) == []
    case = model(bound, STATIC, [20], 2)
    with pytest.raises(VortexError, match=f"wants a KV cache in fp8_{name}, and this one is in fp32"):
        TorchExecutor(bound, STATIC).new_state(PagedKV.from_dense(case.keys[0], case.values[0], 4))


def test_bounds_in_fp8_may_cross() -> None:
    """A page's minimum and maximum have scales of their own, so that the minimum may be stored above the maximum."""
    text = """from vortexlab.dsl import *


@program(page=4, summaries="fp8_e4m3")
class P:
    def summarize(k): return dict(lo=k.min(token), hi=k.max(token))

    def score(q, s): return maximum(q * s.lo, q * s.hi).sum(channel).max(head)

    def select(score): return topk(score, 20)
"""
    static = replace(STATIC, layers=1)
    case = model(parse(text).bind(), static, [233, 190], 4, real=True)
    flat = [[1 + k * 0.02 for k in of_layer] for of_layer in case.keys]
    assert check_steps(replace(case, keys=flat)) == []


@pytest.mark.parametrize("summary", ["v.take(token, k.argmax(token)).sum(channel)", "(k * v).sum(token).sum(channel)"])
def test_keys_and_values_of_different_widths_cannot_meet(summary: str) -> None:
    text = f"""
@program(page=4)
class Meets:
    def summarize(k, v):
        return dict(c={summary})

    def score(q, s):
        return s.c

    def select(score):
        return topk(score, 2)
"""
    met = parse(text).bind()
    TorchExecutor(met, STATIC)
    with pytest.raises(VortexError, match=r"the axis channel has the lengths (8 and 12|12 and 8)"):
        TorchExecutor(met, MLA)
