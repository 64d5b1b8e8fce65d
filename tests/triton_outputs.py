"""Attention outputs of a program's own on the Triton executor against the reference, sound and with planted faults.

Imported where Triton runs in its interpreter; see `triton_runs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from differential import poisoned, with_idle
from differential_course import compare_prefill, compare_steps
from triton_faults import planted

from vortexlab.dsl import parse
from vortexlab.dsl.ir import Static
from vortexlab.dsl.testing import Course, drawn_case, drawn_course
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.gpu.executor import TritonExecutor
from vortexlab.kernels.torch_executor import TorchExecutor

_TEXT = """
@program(page={page}, summaries="{summaries}")
class P:
    def summarize(k, v):
        return dict(a=k.mean(token), b=v.mean(token), c=k.split(token, half=2).sum(token) * 0.25,
                    d=v.split(token, half=2).mean(token))
    def score(q, s): return dict(all=dot(q, s.a, channel).max(head), each=dot(q, s.a, channel))
    def select(score): return {select}
    def attend(q, s, score, pages, ctx): return {attend}
"""


@dataclass(frozen=True)
class Setting:
    """A program by what it selects and gives, and a configuration; `block`: tokens of a block of the cache."""

    attend: str
    select: str = "topk(score.all, 2) | first(1)"
    page: int = 4
    block: int = 4
    heads: tuple[int, int, int] = (2, 2, 16)  # KV heads, group, channels
    dtype: torch.dtype = torch.float32
    lengths: tuple[int, ...] = (33, 3, 20)
    summaries: str = "kv"

    @property
    def text(self) -> str:
        return _TEXT.format(page=self.page, summaries=self.summaries, select=self.select, attend=self.attend)

    def course(self) -> Course:
        kv_heads, group, head_dim = self.heads
        static = Static(kv_heads, group, head_dim, head_dim**-0.5)
        case = drawn_case(
            parse(self.text).bind(), static, list(self.lengths), kind="integers", dtype=self.dtype, block=self.block,
            inputs=len(self.attend),
        )  # fmt: skip
        return drawn_course(case, 1, 2)


_EACH = "clamp(score.each, -2.0, 2.0)"
_HALVES = "keys=s.c, values=s.d"
#: Log-weights, entries, and both; shared and for each head; rows that end within their first page.
SETTINGS = (
    Setting("attention(pages, log_weight=clamp(score.all, -2.0, 2.0))", block=2),
    Setting(f"attention(pages, log_weight={_EACH})", page=8, dtype=torch.float16, lengths=(70, 9)),
    Setting(f"attention(pages, log_weight={_EACH})", select="topk(score.each, 2)", block=16),
    Setting("attention(pages, log_weight=index(page) * -0.25)", "everything()", page=16, block=8, lengths=(200, 17)),
    Setting("attention(keys=s.a, values=s.b)", lengths=(130, 4, 5)),
    Setting(f"attention({_HALVES}, among=~pages, log_weight={_EACH})", block=8, heads=(1, 3, 40)),
    Setting(f"attention(pages, {_HALVES}, among=~pages, entry_log_weight=log(float(ctx.page)))", page=8, block=4),
    Setting(f"attention(pages, keys=s.a, values=s.b, log_weight={_EACH}, entry_log_weight=-1.0 * {_EACH})",
            select="topk(score.each, 3)", heads=(1, 4, 32), dtype=torch.bfloat16, lengths=(90, 1)),
    # Weights of -inf hide, here everything; those near the least number leave a softmax among themselves.
    Setting("attention(pages, log_weight=where(score.all > 0.0, 0.0, log(0.0)), keys=s.a, values=s.b, "
            "entry_log_weight=log(0.0))"),
    Setting("attention(keys=s.a, values=s.b, log_weight=log(0.0)) + attention(keys=s.a, values=s.b, log_weight=-1e30)"),
    Setting("sigmoid(q.sum(channel)) * attention(pages) + 0.5 * attention(last(3), log_weight=score.all * 0.25) - "
            f"maximum(score.all.max(page), -1.0) * attention({_HALVES}, among=first(4))", heads=(2, 3, 24), block=2),
    Setting("attention(pages, log_weight=where(member(topk(score.all, 1)), 0.0, log(maximum(1.0, "
            "where(member(pages), 1.0, 0.0).sum(page)))))", page=8, block=8, lengths=(100, 7)),
    Setting(f"attention(pages, {_HALVES})", summaries="fp8_e4m3", page=8, block=8, lengths=(60, 18)),
    Setting(f"attention(pages, {_HALVES}, log_weight={_EACH})", dtype=torch.float8_e5m2, block=8, lengths=(60, 18)),
    Setting("attention(pages, keys=s.a, values=s.b, among=topk(score.each, 2))", heads=(1, 2, 16)),
)  # fmt: skip


@cache
def course(number: int) -> Course:
    return SETTINGS[number].course()


def disagreements() -> list[str]:
    found, determined = [], 0
    for number in range(len(SETTINGS)):
        report = compare_steps(TritonExecutor, course(number))
        found += [f"{number}: {item}" for item in report.disagreements[:2]]
        determined += report.determined
    if determined < 120:
        found.append(f"only {determined} lists were determined")
    return found + [item for number in (0, 6, 9, 10) for item in _idle(number)] + _prompts()


def _prompts() -> list[str]:
    """Blocks of prefill queries, which the torch executor reads for such programs."""
    text = Setting("attention(pages, keys=s.a, values=s.b, among=~pages)").text
    text = text.replace("page=4,", "page=4, block=8,") + "    def pool(q): return q.mean(query)\n"
    case = drawn_case(
        parse(text).bind(), Static(1, 2, 16, 0.25), [19, 8], kind="integers", dtype=torch.float32, block=4, inputs=1
    )
    return compare_prefill(TritonExecutor, drawn_course(case, 1, 1)).disagreements[:2]


def _idle(number: int) -> list[str]:
    """Rows without a request give 0, whatever their query holds; the others what they give in the torch executor."""
    case = course(number).case
    outs = []
    for kind in (TritonExecutor, TorchExecutor):
        with poisoned():
            cached = with_idle(PagedKV.from_dense(case.keys, case.values, case.block, shuffle_seed=1), [0, 2])
            executor = kind(case.program, case.static)
            state = executor.new_state(cached)
            executor.summarize(state, cached)
            q = case.q.new_full((cached.batch, *case.q.shape[1:]), torch.nan)
            q[cached.lengths > 0] = case.q
            outs.append(executor.decode(q, state, cached))
    (out, lists), (wanted, others) = outs
    right = torch.allclose(out, wanted, atol=1e-4, rtol=1e-4) and not out[[0, 3]].any()
    return [] if right and lists.to_list() == others.to_list() else [f"idle rows: {SETTINGS[number]}"]


#: Where, what stands there, what is planted, what that breaks, and the setting that shows it.
FAULTS = (
    ("attention", "logits += tile_weights", "tile_weights", "log-weights are left out", 0),
    ("generated", "* 1.4426950408889634, 0.0)", "* 1.4426950408889634, 0.5)", "the own page has a weight", 0),
    ("attention", "weights += row * WEIGHTS", "weights += 0 * row", "all lists have the weights of the first", 0),
    ("attention", "head[:, None] * weight_row", "0 * head[:, None]", "all heads have the weights of the first", 1),
    ("attention", "page = start // PAGE + ", "page = ", "every tile has the weights of the first", 3),
    ("attention", "tl.store(mass + place, total,", "tl.store(mass + place, total * (first_run == 0),",
     "the mass of entries is forgotten", 6),
    ("attention", "runs + first_run + split", "runs + split", "entries take the place of tokens", 6),
    ("generated", "listed = live & ", "listed = live | ", "pages that are read are entries too", 6),
    ("attention", "-3.0e38 if WEIGHTS else -1.0e30", "-1.0e30", "very small weights hide", 9),
    ("attention", "k_scales + atom * KV_HEADS", "k_scales + 0 * atom", "keys have the scales of the first page", 12),
    ("attention", "v_scales + atom * KV_HEADS", "v_scales + 0 * atom", "values have the scales of the first page", 12),
)  # fmt: skip


def find_all() -> dict[str, str | None]:
    """For each fault by what it breaks: the first disagreement that it caused, or None."""
    found: dict[str, str | None] = {}
    for where, old, new, breaks, number in FAULTS:
        with planted(where, old, new) as count:
            wrong = compare_steps(TritonExecutor, course(number)).disagreements or _idle(number)
        assert count, f"fault {old!r} was never planted"
        found[breaks] = wrong[0][:300] if wrong else None
    return found
