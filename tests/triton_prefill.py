"""Prefill of the Triton executor against the reference, sound and with planted faults.

Imported where Triton runs in its interpreter; see `triton_runs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import torch
from differential_course import compare_prefill
from triton_faults import imported

import vortexlab.kernels.gpu.prefill as prefill
from vortexlab.dsl import parse
from vortexlab.dsl.ir import Static
from vortexlab.dsl.testing import Course, drawn_case, drawn_course
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.gpu import prefill_kernels
from vortexlab.kernels.gpu.executor import TritonExecutor
from vortexlab.kernels.torch_executor import TorchExecutor

_TEXT = """
@program(page={page}, block={queries})
class P:
    def summarize(k): return dict(c=k.sum(token))
    def pool(q): return q.slice(query, -1).max(query)
    def score(q, s): return dot(q, s.c, channel){shared}
    def select(score, ctx): return where(ctx.prefill, topk(score, 2) | first(1), everything())
"""


@dataclass(frozen=True)
class Setting:
    """`queries`: of one block of the program; `block`: tokens of one of the cache's. `per_head`: a list for each."""

    page: int
    queries: int
    block: int
    heads: tuple[int, int, int]  # KV heads, group, channels
    per_head: bool
    dtype: torch.dtype
    lengths: tuple[int, ...]

    @property
    def static(self) -> Static:
        kv_heads, group, head_dim = self.heads
        return Static(kv_heads, group, head_dim, head_dim**-0.5)


#: Every relation of page, block of queries, block of the cache and tile (16 tokens in fp32), at the edges of pages.
SETTINGS = (
    Setting(16, 32, 16, (2, 2, 16), False, torch.float32, (1, 16, 17, 75)),
    Setting(16, 16, 32, (1, 3, 40), True, torch.float32, (47, 48, 49)),
    Setting(8, 32, 8, (1, 2, 16), True, torch.float32, (71, 8, 9)),
    Setting(4, 8, 8, (2, 1, 24), False, torch.float32, (4, 5, 37)),
    Setting(32, 8, 16, (1, 4, 32), False, torch.bfloat16, (33, 70)),
    Setting(64, 64, 64, (1, 2, 32), True, torch.float16, (65, 150)),
)


@cache
def course(number: int) -> Course:
    at = SETTINGS[number]
    program = parse(_TEXT.format(page=at.page, queries=at.queries, shared="" if at.per_head else ".max(head)")).bind()
    lengths = list(at.lengths)
    case = drawn_case(program, at.static, lengths, kind="integers", dtype=at.dtype, block=at.block, inputs=number)
    return drawn_course(case, 1, 1)


def disagreements() -> list[str]:
    found, determined = [], 0
    for number in range(len(SETTINGS)):
        report = compare_prefill(TritonExecutor, course(number))
        found += report.disagreements[:2]
        determined += report.determined
    if determined < 60:
        found.append(f"only {determined} lists were determined")
    return found + [item for at in SETTINGS[:5] for item in _dense(at)] + _given_summaries()


def _dense(at: Setting) -> list[str]:
    """Where a program does not pool, prefill is dense: equal to that of the torch executor."""
    program = parse(f"@program(page={at.page})\nclass P:\n    def select(): return last(1)\n").bind()
    generator = torch.Generator().manual_seed(at.page)
    kv_heads, group, head_dim = at.heads
    k, v = ([torch.randn(kv_heads, n, head_dim, generator=generator).to(at.dtype) for n in at.lengths] for _ in "kv")
    q = torch.randn(len(k), kv_heads * group, max(at.lengths) + 2, head_dim, generator=generator).to(at.dtype)
    pages = PagedKV.from_dense(k, v, at.block, shuffle_seed=1, spare=3)
    (wanted, _), (out, lists) = (kind(program, at.static).prefill(q, pages) for kind in (TorchExecutor, TritonExecutor))
    bound = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[at.dtype]
    right = lists == [] and torch.allclose(out.float(), wanted.float(), atol=bound, rtol=bound)
    return [] if right else [f"dense prefill of {at}"]


def _given_summaries() -> list[str]:
    """Summaries that decode made do for prefill, and so do those of a program that decodes without any."""
    of_course = course(0)
    case, static = of_course.case, of_course.statics[0]
    cached = PagedKV.from_dense(of_course.keys[0], of_course.values[0], 16)
    q = torch.zeros(len(case.lengths), 4, max(case.lengths), static.head_dim)
    for row, prompt in enumerate(of_course.prompt[0]):
        q[row, :, : prompt.shape[1]] = prompt
    executor = TritonExecutor(case.program, static)
    state = executor.new_state(cached)
    executor.summarize(state, cached)
    (out, lists), (wanted, others) = executor.prefill(q, cached, state), executor.prefill(q, cached)
    same = torch.equal(out, wanted) and [x.to_list() for x in lists] == [x.to_list() for x in others]
    return [] if same else ["given summaries change prefill"]


#: What stands in the kernel, what is planted, what that breaks, and the settings that show it.
FAULTS = (
    ("slot[None, :] <= last[:, None]", "slot[None, :] <= last[:, None] + 1", "a query sees the token after it", 0),
    ("(begin + shift + 1) // TILE", "(begin + shift + TILE) // TILE", "the last whole tile is not masked", 0),
    ("tl.load(at + 5)", "1", "blocks of several pages begin too early", 0),
    ("total = total * fade", "total = total", "the softmax does not rescale its mass", 0),
    ("start + TILE, end", "start, end", "the first tile is read again and again", 0),
    ("start + TILE + HALF, end", "start + HALF, end", "the second half of a tile is the first one's", 2),
    ("+ tl.program_id(1) % LISTS", "", "the first head attends for all heads with lists of their own", 1),
    ("position = begin + tl.arange(0, ROWS) % QUERIES", "position = begin + tl.arange(0, ROWS) % QUERIES // 2 * 2",
     "every other query is left out", 3),
)  # fmt: skip


def find_all() -> dict[str, str | None]:
    """For each fault by what it breaks: the first disagreement that it caused, or None."""
    text = Path(str(prefill_kernels.__file__)).read_text()
    found: dict[str, str | None] = {}
    for old, new, breaks, number in FAULTS:
        assert old in text, f"{old!r} is not in the kernel"
        faulty = imported(text.replace(old, new))
        with mock.patch.object(prefill, "attend_prompt", faulty.attend_prompt):
            wrong = compare_prefill(TritonExecutor, course(number)).disagreements
        found[breaks] = wrong[0][:300] if wrong else None
    return found
