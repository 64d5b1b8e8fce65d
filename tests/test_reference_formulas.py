"""The reference against formulas written by hand: vectorised torch, none of the project's code.

Each formula takes whole tensors of one request and KV head and gives the pages to read; attention is PyTorch's own
under a token mask. Inputs are real-valued, in float64 on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vortexlab.dsl import parse
from vortexlab.dsl.ir import Program, Static
from vortexlab.dsl.reference import run
from vortexlab.dsl.testing import with_page
from vortexlab.search_spaces import load

STATIC = Static(kv_heads=2, group=3, head_dim=24, scale=24**-0.5, layer=2, layers=8)
PAGE = 8
#: A full own page, one that has just begun, one page alone, and none complete.
LENGTHS = (208, 161, 8, 5)

#: Pages k and v [n, token, channel], q [head, channel], own page, KV head, position -> bool [own + 1] or
#: [head, own + 1].
Formula = Callable[[Tensor, Tensor, Tensor, int, int, int], Tensor]


def best(score: Tensor, count: int, forced: Tensor) -> Tensor:
    """Mask of the `count` highest scores outside `forced`, over pages 0..own, and the forced pages."""
    score = score.masked_fill(forced[..., :-1], -math.inf)
    count = min(count, int((score > -math.inf).sum(-1).max()) if score.numel() else 0)
    chosen = torch.zeros_like(forced).expand(*score.shape[:-1], forced.shape[-1]).clone()
    if count:
        chosen.scatter_(-1, score.topk(count, -1).indices, True)
    return chosen | forced


def ends(own: int, sink: int, recent: int) -> Tensor:
    page = torch.arange(own + 1)
    return (page < sink) | (page > own - recent)


def envelope(k: Tensor, q: Tensor) -> Tensor:
    """Quest's bound, [head, page], as two matrix products: positive parts meet maxima, negative parts minima."""
    return q.clamp(min=0) @ k.amax(1).T + q.clamp(max=0) @ k.amin(1).T


def hashed(seed: int, salt: int, kv: int, position: int, own: int) -> Tensor:
    """The counter-based hash of every candidate page, in numpy-like 64-bit arithmetic kept to 32 bits."""

    def mix(x: Tensor) -> Tensor:
        x = x ^ (x >> 16)
        x = (x * 0x7FEB352D) % 2**32
        x = x ^ (x >> 15)
        x = (x * 0x846CA68B) % 2**32
        return x ^ (x >> 16)

    h = mix(torch.full((own,), seed ^ 0x9E3779B9, dtype=torch.int64))
    for fact in (salt, STATIC.layer, kv):
        h = mix(h ^ fact)
    return mix(mix(h ^ torch.arange(own)) ^ position)


def dense(k: Tensor, v: Tensor, q: Tensor, own: int, kv: int, position: int) -> Tensor:
    return torch.ones(own + 1, dtype=torch.bool)


def sink_window(k: Tensor, v: Tensor, q: Tensor, own: int, kv: int, position: int) -> Tensor:
    return ends(own, 2, 5)


def bigbird(k: Tensor, v: Tensor, q: Tensor, own: int, kv: int, position: int) -> Tensor:
    return best(-hashed(0, 0, kv, position, own).double(), 6, ends(own, 2, 3))


def strided(k: Tensor, v: Tensor, q: Tensor, own: int, kv: int, position: int) -> Tensor:
    return (torch.arange(own + 1) % 5 == 0) | ends(own, 0, 2)


def centroid(k: Tensor, v: Tensor, q: Tensor, own: int, kv: int, position: int) -> Tensor:
    return best(torch.einsum("hc,pc->hp", q, k.mean(1)).amax(0), 6, ends(own, 1, 2))


def quest(k: Tensor, v: Tensor, q: Tensor, own: int, kv: int, position: int) -> Tensor:
    return best(envelope(k, q).amax(0), 5, ends(own, 1, 2))


def gqa_quest(k: Tensor, v: Tensor, q: Tensor, own: int, kv: int, position: int) -> Tensor:
    return best(envelope(k, q).mean(0), max(4, math.floor(0.2 * (own + 1))), ends(own, 1, 2))


def top_p(k: Tensor, v: Tensor, q: Tensor, own: int, kv: int, position: int) -> Tensor:
    forced = ends(own, 1, 1)
    score = torch.einsum("hc,pc->hp", q, k.mean(1)).amax(0).masked_fill(forced[:-1], -math.inf)
    if not (score > -math.inf).any():
        return forced
    mass = torch.softmax(score * STATIC.scale, 0).sort(descending=True).values
    needed = int((mass.cumsum(0) < 0.6).sum()) + 1
    return best(score, min(needed, max(4, math.floor(0.5 * (own + 1)))), forced)


def subpage_quest(k: Tensor, v: Tensor, q: Tensor, own: int, kv: int, position: int) -> Tensor:
    parts = torch.stack([envelope(part, q) for part in k.chunk(4, 1)])
    return best(parts.amax((0, 1)), 5, ends(own, 1, 2))


def value_energy(k: Tensor, v: Tensor, q: Tensor, own: int, kv: int, position: int) -> Tensor:
    mass = torch.softmax(STATIC.scale * q @ k.mean(1).T, 1)
    return best((mass * torch.linalg.vector_norm(v, dim=2).mean(1)).amax(0), 5, ends(own, 1, 2))


SEEDS: dict[str, tuple[Formula, dict[str, int | float | str]]] = {
    "dense": (dense, {}),
    "sink_window": (sink_window, {"sink": 2, "recent": 5}),
    "bigbird": (bigbird, {"sink": 2, "recent": 3, "random_pages": 6}),
    "strided": (strided, {"stride_pages": 5, "recent": 2}),
    "centroid": (centroid, {"budget": 6}),
    "quest": (quest, {"budget": 5}),
    "gqa_quest": (gqa_quest, {"reduce": "mean", "fraction": 0.2}),
    "top_p": (top_p, {"mass": 0.6, "fraction": 0.5, "recent": 1}),
    "subpage_quest": (subpage_quest, {"sub": 4, "budget": 5}),
    "value_energy": (value_energy, {"budget": 5}),
}


def moment_heads(k: Tensor, v: Tensor, q: Tensor, own: int, kv: int, position: int) -> Tensor:
    """A list per query head, from a second-moment quadratic form: q^T (K^T K / P) q, thresholded at its mean."""
    form = torch.einsum("pta,ptb->pab", k, k) / PAGE
    score = torch.sqrt(torch.einsum("ha,pab,hb->hp", q, form, q))
    chosen = (score > score.mean(1, keepdim=True)) & (score.argsort(1, descending=True).argsort(1) < 7)
    own_too = torch.cat([chosen, torch.ones(STATIC.group, 1, dtype=torch.bool)], 1)
    return own_too & ~(torch.arange(own + 1) == 1)


MOMENT_HEADS = """
@program(page=8)
class MomentHeads:
    def summarize(k):
        return dict(form=dot(k, k.rename(channel, other), token) / 8)

    def score(q, s):
        return sqrt(dot(dot(q, s.form, channel), q.rename(channel, other), other))

    def select(score):
        return above(score, score.mean(page), max=7) - (first(2) - first(1))
"""


def mass_of_halves(k: Tensor, q: Tensor) -> Tensor:
    """[page]: best token's score in each half of the channels, normalised over pages; the best half and head."""
    halves = torch.einsum("hsc,pdsc->hspd", q.unflatten(1, (2, 12)), k.unflatten(2, (2, 12))).amax(3)
    return torch.softmax(halves, 2).amax((0, 1))


SHARED = """
@program(page=8)
class Shared:
    def summarize(k):
        return dict(k=k.split(channel, half=2))

    def score(q, s):
        close = dot(q.split(channel, half=2), s.k, channel).max(token)
        return share(softmax(close, page).max(head).max(half), "sum")

    def select(score):
        return topk(score, 4, among=~first(1)) | last(2)
"""


def contexts(seed: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q = draw(len(LENGTHS), STATIC.kv_heads * STATIC.group, STATIC.head_dim)
    return q, *([draw(STATIC.kv_heads, n, STATIC.head_dim) for n in LENGTHS] for _ in range(2))


def pages_of(x: Tensor, own: int) -> Tensor:
    return x[: own * PAGE].unflatten(0, (own, PAGE))


def check(program: Program, formula: Formula, seed: int) -> None:
    q, keys, values = contexts(seed)
    step = run(program, STATIC, q, keys, values)
    read = []
    for b, length in enumerate(LENGTHS):
        own = (length - 1) // PAGE
        for kv in range(STATIC.kv_heads):
            k, v = keys[b][kv], values[b][kv]
            heads = slice(kv * STATIC.group, (kv + 1) * STATIC.group)
            mask = formula(pages_of(k, own), pages_of(v, own), q[b, heads], own, kv, length - 1)
            mask = mask.clone()
            mask[..., own] = True
            wanted = [tuple(row.nonzero()[:, 0].tolist()) for row in (mask if mask.dim() == 2 else mask[None])]
            assert step.lists[b][kv] == wanted, (program.name, length, kv)
            tokens = mask.repeat_interleave(PAGE, -1)[..., :length].expand(STATIC.group, length)
            expected = scaled_dot_product_attention(
                q[b, heads][:, None], k.expand(STATIC.group, -1, -1), v.expand(STATIC.group, -1, -1),
                attn_mask=tokens[:, None], scale=STATIC.scale,
            )  # fmt: skip
            torch.testing.assert_close(step.output[b, heads], expected[:, 0], rtol=1e-10, atol=1e-12)
            read.append(tokens.any(0).sum().item() / length)
    assert step.density == pytest.approx(sum(read) / len(read))
    assert not step.nan and step.ties == 0


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_published_programs_equal_their_formulas(name: str, seed: int) -> None:
    formula, knobs = SEEDS[name]
    program = load(name)
    check(with_page(program, PAGE).bind(knobs), formula, seed)


def test_lists_per_query_head_equal_their_formula() -> None:
    check(parse(MOMENT_HEADS).bind(), moment_heads, 2)


def test_a_shared_list_equals_its_formula() -> None:
    q, keys, values = contexts(3)
    step = run(parse(SHARED).bind(), STATIC, q, keys, values)
    for b, length in enumerate(LENGTHS):
        own = (length - 1) // PAGE
        total = sum(
            mass_of_halves(pages_of(keys[b][kv], own), q[b, kv * STATIC.group : (kv + 1) * STATIC.group])
            for kv in range(STATIC.kv_heads)
        )
        assert isinstance(total, Tensor)
        forced = torch.arange(own + 1) == 0
        mask = (best(total, 4, forced) & ~forced) | ends(own, 0, 2)
        wanted = [tuple(mask.nonzero()[:, 0].tolist())]
        assert step.lists[b] == [wanted, wanted]


def test_float32_runs_agree_with_float64() -> None:
    q, keys, values = contexts(4)
    program = with_page(load("quest"), PAGE).bind({"budget": 5})
    double = run(program, STATIC, q, keys, values)
    floats = [[x.float() for x in xs] for xs in (keys, values)]
    single = run(program, STATIC, q.float(), *floats, dtype=torch.float32)
    assert single.output.dtype == torch.float32 and single.lists == double.lists
    torch.testing.assert_close(single.output.double(), double.output, rtol=1e-4, atol=1e-6)
