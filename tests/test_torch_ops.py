"""Every value op of the language on the torch executor, over pages and over other axes, against the reference.

Rows are ragged, one of them without any candidate page, so what stands in padding columns would show.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.step_cases import check_steps, model, with_parameters
from vortexlab.dsl.ir import Static
from vortexlab.dsl.parser import parse
from vortexlab.kernels.precision import cast, scaled

STATIC = Static(kv_heads=2, group=3, head_dim=8, scale=0.25, layers=2)
SUMMARIES = "dict(c=k.sum(token), d=v.max(token), parts=k.split(token, part=2).sum(token))"

#: An expression for the score of a page, from q, s.c, s.d [page, channel], s.parts [page, part, channel], x = q . s.c
#: [page, head] and y, its maximum over the heads [page].
SCORES = {
    "index of a page": "y * (index(page) % 3)",
    "index of an axis that the program made": "(dot(q, s.parts, channel) * s.parts.index(part)).max(part).max(head)",
    "index of heads": "(x * index(head)).max(head)",
    "index of channels": "(s.c * index(channel)).sum(channel)",
    "slice": "dot(q.slice(channel, 0, 5), s.c.slice(channel, -5), channel).max(head)",
    "slice by the width": "dot(q.slice(channel, 1, ctx.head_dim), s.c.slice(channel, 1), channel).max(head)",
    "slice of heads": "x.slice(head, 1).max(head)",
    "concat": "dot(concat(q, 2 * q, channel), concat(s.c, s.d, channel), channel).max(head)",
    "concat that broadcasts":
        "concat(s.parts, weight.rename(channel, part).slice(part, 0, 3), part).max(part).max(channel)",
    "merge":
        "where(s.parts.merge(part, channel, into=wide).index(wide) % 3 == 1, "
        "s.parts.merge(part, channel, into=wide), 0.0).sum(wide)",
    "split and merge": "dot(q, s.c.split(channel, four=4).merge(four, channel, into=channel), channel).max(head)",
    "take of channels": "abs(s.c.take(channel, 3, fill=0.0))",
    "take at an index of pages": "s.c.take(channel, index(page) - 1, fill=7.0)",
    "take of pages": "y + y.take(page, index(page) - 2, fill=-5.0)",
    "take of a page of all": "y - y.take(page, y.argmax(page), fill=3.0)",
    "take of wide pages": "dot(q, s.c.take(page, x.argmax(page), fill=1.0), channel).max(head) + y",
    "take beyond the pages": "y + y.take(page, index(page) + 2, fill=100.0)",
    "shift up": "y + 2 * y.shift(page, 1, fill=9.0)",
    "shift down": "y + 2 * y.shift(page, -2, fill=9.0)",
    "shift further than there are pages": "y + y.shift(page, 99, fill=1.0) + y.shift(page, -99, fill=2.0)",
    "shift of wide pages": "dot(q, s.c - s.c.shift(page, -1, fill=4.0), channel).max(head)",
    "shift of channels": "dot(q, s.c.shift(channel, 3, fill=1.0), channel).max(head)",
    "window of pages": "y.window(page, near=3, fill=-9.0).max(near)",
    "even window of wide pages": "dot(q, s.c.window(page, near=4, fill=2.0).sum(near), channel).max(head)",
    "window of channels":
        "(s.c.window(channel, near=3, fill=1.0) * s.c.window(channel, near=3, "
        "fill=1.0).index(near)).sum(near).max(channel)",
    "window and its index":
        "(y.window(page, near=5, fill=1.0) * (y.window(page, near=5, fill=1.0).index(near) - 2)).sum(near)",
    "cumsum of pages": "y.cumsum(page)",
    "cummax of wide pages": "s.c.cummax(page).sum(channel)",
    "cummin of channels": "s.c.cummin(channel).sum(channel) + y.cummin(page)",
    "sort of pages": "y.sort(page) + 3 * y.sort(page, \"up\")",
    "sort of channels": "s.c.sort(channel).slice(channel, 0, 3).sum(channel)",
    "sort of wide pages": "dot(q, s.d.sort(page), channel).max(head)",
    "argmax of channels": "float(s.c.argmax(channel)) + y",
    "argmax of pages": "where(index(page) == y.argmax(page), -50.0, y)",
    "argmax of numbers": "float((index(page) * 3 % 5).argmax(page)) + y",
    "largest page number": "y + (index(page) + 1).max(page)",
    "member": "where(member(topk(y, 2)), y, y - 10.0)",
    "member by head": "where(member(topk(x, 1)), x, 0.0).sum(head)",
    "fp8 casts": "dot(q, (37 * s.c).to(\"fp8_e4m3\") + (1000.0 * s.d).to(\"fp8_e5m2\"), channel).max(head)",
    "a learned weight": "dot(q, s.c * weight, channel).max(head)",
    "a learned weight by KV head and part": "(dot(q, s.parts, channel) * own).sum(part).max(head)",
    "a learned codebook": "s.c.take(channel, code, fill=0.0).sum(entry)",
    "a learned number": "y * strength",
}  # fmt: skip
PARAMS = """
    weight = param(channel)
    own = param(head, part=2, per_kv_head=True)
    code = param(entry=5, per_layer=False, kind="int")
    strength = param(per_layer=True)
"""


def program(score: str, params: str = PARAMS):
    text = f"""from vortexlab.dsl import *


@program(page=4)
class P:
{params}
    def summarize(k, v):
        return {SUMMARIES}

    def score(q, s, ctx):
        x = dot(q, s.c, channel)
        y = x.max(head)
        return {score}

    def select(score):
        return topk(score, 2)
"""
    return parse(text).bind()


@pytest.mark.parametrize("name", SCORES)
def test_score(name: str, tmp_path: Path) -> None:
    bound = with_parameters(program(SCORES[name]), STATIC, tmp_path)
    for seed in (1, 2):
        assert check_steps(model(bound, STATIC, [2, 33, 14], 3, seed=seed)) == []


def test_fp8_saturates_and_keeps_nan() -> None:
    x = torch.tensor([0.3, 448.0, 1e9, -1e9, float("inf"), float("nan")])
    for dtype, most in ((torch.float8_e4m3fn, 448.0), (torch.float8_e5m2, 57344.0)):
        found = cast(x, dtype).float()
        assert found[2:5].tolist() == [most, -most, most] and bool(found[5].isnan())


def test_scales_are_one_where_they_would_be_no_numbers() -> None:
    x = torch.tensor([[[0.0, 0.0], [1e-44, 0.0]], [[float("inf"), 1.0], [896.0, 1.0]]])
    found, scale = scaled(x, torch.float8_e4m3fn, 2)
    assert scale.tolist() == [[1.0, 1.0], [1.0, 2.0]]
    assert (found.float() * scale[..., None])[1].tolist() == [[448.0, 1.0], [896.0, 1.0]]
