"""Selectors and set algebra on boolean masks.

A set is a mask ``[batch, kv_heads, lists, pages]`` over pages 0..own (any leading dimension may be 1), where `own` is
the page of the query's token and `lists` is 1 or the group size. Scores are ``[batch, kv_heads, lists, candidates]``
with one column less: the own page is never a candidate.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy
import torch
from torch import Tensor
from torch.nn.functional import pad

#: Keys up to this one are never chosen: those of -inf, whose bits order as -2139095041.
_NEVER = (-2139095041 << 32) + (1 << 31)
_MASK32 = 0xFFFFFFFF
_earlier_first = True


@contextlib.contextmanager
def reversed_ties() -> Iterator[None]:
    """Inside the block, of equal scores the later page comes first: for finding out what ties decided."""
    global _earlier_first
    before, _earlier_first = _earlier_first, False
    try:
        yield
    finally:
        _earlier_first = before


def order_keys(score: Tensor, allowed: Tensor) -> Tensor:
    """int64 keys, all different in a row, whose descending order is (score descending, page ascending).

    Candidates that may never be chosen (not allowed, -inf, NaN) have keys of at most `_NEVER`. -0 and +0 are one value.
    """
    score = score.float() + 0.0
    bits = torch.where(allowed & (score > float("-inf")), score, float("-inf")).view(torch.int32)
    page = torch.arange(score.shape[-1], device=score.device)
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long().mul_(1 << 32)
    return keys.sub_(page if _earlier_first else -page)


def choose(keys: Tensor, count: Tensor) -> Tensor:
    """Mask of the `count` largest keys of each row; keys up to `_NEVER` are never chosen.

    `count`: int64, one per row, broadcastable to ``[*keys.shape[:-1], 1]``.
    """
    count = count.clamp(0, keys.shape[-1]).expand(*keys.shape[:-1], 1)
    cut = _smallest_chosen(keys, count)
    return (keys >= cut.clamp(min=_NEVER + 1)) & (count > 0)


def _smallest_chosen(keys: Tensor, count: Tensor) -> Tensor:
    """The key of rank `count` (at least 1) from above in each row: [..., 1]."""
    most, least = int(count.max()), int(count.min())
    if keys.device.type != "cpu":
        return keys.topk(max(1, most)).values.gather(-1, (count - 1).clamp(min=0))
    # numpy sorts and partitions integers several times as fast as torch does.
    array, width = keys.numpy(), keys.shape[-1]
    if most == least:
        place = width - max(1, most)
        return torch.from_numpy(numpy.partition(array, place, axis=-1)[..., place : place + 1])
    return torch.from_numpy(numpy.sort(array, axis=-1)).gather(-1, width - count.clamp(min=1))


def topk(score: Tensor, count: Tensor, allowed: Tensor) -> Tensor:
    return choose(order_keys(score, allowed), count)


def above(score: Tensor, threshold: Tensor | float, most: Tensor, allowed: Tensor) -> Tensor:
    return choose(order_keys(score, allowed & (score > threshold)), most)


def topp(score: Tensor, mass: Tensor | float, scale: Tensor | float, most: Tensor, allowed: Tensor) -> Tensor:
    """The fewest candidates, best first, whose softmax(scale * score) mass reaches `mass`: one to `most` of them.

    Masses accumulate in float64: a sum of thousands of fp32 weights would move the cut.
    """
    keys = order_keys(score, allowed)
    possible = keys > _NEVER
    weight = torch.where(possible, score.double() * scale, float("-inf")).softmax(-1)
    order = keys.argsort(dim=-1, descending=True)
    before = weight.gather(-1, order).cumsum(-1)[..., :-1]
    enough = pad(before, (1, 0)) >= mass
    enough[..., 0] = False
    count = torch.where(enough.any(-1, keepdim=True), enough.int().argmax(-1, keepdim=True), score.shape[-1])
    return choose(keys, torch.minimum(count, most.clamp(min=0)))


def _mix(x: Tensor) -> Tensor:
    """The 32-bit finaliser of the language's counter-based generator, on int64 holding uint32."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK32
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK32
    return x ^ (x >> 16)


def random_keys(
    seed: int, salt: int, layer: int, kv_heads: int, position: Tensor, pages: int, allowed: Tensor
) -> Tensor:
    """Keys for `choose` that draw candidates by (seed, salt, layer, KV head, page, position) and nothing else.

    `position`: int64 [batch]. The smallest hash comes first, ties go to the smaller page.
    """
    device = position.device

    def number(value: int) -> Tensor:
        return torch.tensor(value & _MASK32, dtype=torch.int64, device=device)

    h = _mix(number(seed ^ 0x9E3779B9))
    h = _mix(h ^ number(salt))
    h = _mix(h ^ number(layer))
    h = _mix(h ^ torch.arange(kv_heads, device=device)[None, :, None, None])
    page = torch.arange(pages, device=device)
    h = _mix(h ^ page)
    h = _mix(h ^ position[:, None, None, None])
    return torch.where(allowed, -(h << 30) - page, _NEVER)


def static_set(op: str, pages: Tensor, own: Tensor, first: Tensor, second: Tensor | None = None) -> Tensor:
    """`first`, `last` and `stride` as masks. `pages`: int64 [pages]; `own`, operands: int64, broadcastable."""
    live = pages <= own
    if op == "first":
        return live & (pages < first)
    if op == "last":
        return live & (pages > own - first)
    assert op == "stride" and second is not None
    step = first.clamp(min=1)
    return live & (pages % step == second % step)
