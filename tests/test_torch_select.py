"""Exact selection on masks: order, ties, ragged counts, random draws."""

from __future__ import annotations

import math
import random

import pytest
import torch

from vortexlab.kernels import torch_select
from vortexlab.kernels.executor import PageLists

INF, NAN = float("inf"), float("nan")


def column(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64)[:, None]


def pages(mask: torch.Tensor) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in mask]


def everything(score: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(score, dtype=torch.bool)


def test_order_is_by_score_then_smaller_page() -> None:
    score = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]]).repeat(6, 1)
    mask = torch_select.topk(score, column(0, 1, 2, 3, 4, 9), everything(score))
    assert pages(mask) == [[], [1], [1, 2], [1, 2, 4], [1, 2, 3, 4], [0, 1, 2, 3, 4]]


def test_minus_zero_is_zero_and_minus_infinity_and_nan_are_never_chosen() -> None:
    score = torch.tensor([[-0.0, 0.0, -INF, NAN, -1.0, INF, -3e38]])
    for count, wanted in ((1, [5]), (2, [0, 5]), (3, [0, 1, 5]), (7, [0, 1, 4, 5, 6])):
        assert pages(torch_select.topk(score, column(count), everything(score))) == [wanted]


def test_negative_counts_choose_nothing() -> None:
    score = torch.rand(2, 4)
    assert not torch_select.topk(score, column(-3, 0), everything(score)).any()


def test_pages_that_are_not_allowed_are_not_chosen() -> None:
    score = torch.arange(6.0)[None].repeat(2, 1)
    allowed = torch.tensor([[True, False, True, False, True, False], [False] * 6])
    assert pages(torch_select.topk(score, column(2, 3), allowed)) == [[2, 4], []]


@pytest.mark.parametrize("seed", range(5))
def test_topk_equals_sorting_in_python(seed: int) -> None:
    rng = random.Random(seed)
    rows, width = 12, rng.randint(1, 40)
    values = [[rng.choice([-INF, NAN, -0.0, 0.0, 1.0, rng.uniform(-2, 2)]) for _ in range(width)] for _ in range(rows)]
    allowed = [[rng.random() < 0.8 for _ in range(width)] for _ in range(rows)]
    same = rng.random() < 0.5
    counts = [5 if same else rng.randint(-1, width + 2) for _ in range(rows)]
    mask = torch_select.topk(torch.tensor(values), column(*counts), torch.tensor(allowed))
    for row in range(rows):
        able = [p for p in range(width) if allowed[row][p] and values[row][p] > -INF]
        able.sort(key=lambda p, row=row: (-values[row][p], p))
        assert pages(mask)[row] == sorted(able[: max(0, counts[row])])


def test_reversed_ties_put_the_later_page_first() -> None:
    score = torch.tensor([[1.0, 1.0, 2.0, 1.0]])
    with torch_select.reversed_ties():
        assert pages(torch_select.topk(score, column(2), everything(score))) == [[2, 3]]
    assert pages(torch_select.topk(score, column(2), everything(score))) == [[0, 2]]


def test_above_is_strict_and_keeps_the_best() -> None:
    score = torch.tensor([[0.5, 1.0, 2.0, 1.5, NAN]])
    allowed = everything(score)
    assert pages(torch_select.above(score, 1.0, column(9), allowed)) == [[2, 3]]
    assert pages(torch_select.above(score, 0.0, column(2), allowed)) == [[2, 3]]
    assert pages(torch_select.above(score, torch.tensor([[9.0]]), column(2), allowed)) == [[]]


@pytest.mark.parametrize(
    ("mass", "most", "wanted"),
    [
        (0.0, 9, [2]),
        (0.5, 9, [2]),
        (0.75, 9, [0, 2]),
        (0.76, 9, [0, 1, 2]),
        (1.0, 9, [0, 1, 2, 3]),
        (1.0, 2, [0, 2]),
        (0.9, 0, []),
    ],
)
def test_topp_takes_the_fewest_pages_that_reach_the_mass(mass: float, most: int, wanted: list[int]) -> None:
    # Masses 1/4, 1/8, 1/2, 1/8: the mass before a page decides whether it is taken.
    score = torch.tensor([[2.0, 1.0, 3.0, 1.0, -INF]]) * math.log(2)
    assert pages(torch_select.topp(score, mass, 1.0, column(most), everything(score))) == [wanted]


def test_topp_orders_by_score_whatever_the_scale() -> None:
    score = torch.tensor([[1.0, 2.0, 3.0]])
    flat = torch_select.topp(score, 0.5, 0.0, column(9), everything(score))
    assert pages(flat) == [[1, 2]]  # three equal masses: 1/3 is short of 1/2, 2/3 is not
    assert pages(torch_select.topp(score, 0.99, 100.0, column(9), everything(score))) == [[2]]


def test_topp_counts_only_what_may_be_chosen() -> None:
    score = torch.tensor([[5.0, 1.0, 1.0]])
    allowed = torch.tensor([[False, True, True]])
    assert pages(torch_select.topp(score, 0.5, 1.0, column(9), allowed)) == [[1]]


def mix(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


def test_random_follows_the_counter_in_plain_integers() -> None:
    seed, salt, layer, heads, count = 2**32 - 1, 2**31 + 5, 7, 3, 4
    positions, width = [0, 99, 70_000], 50
    allowed = torch.arange(width) < torch.tensor([0, 7, 50])[:, None, None, None]
    keys = torch_select.random_keys(seed, salt, layer, heads, torch.tensor(positions), width, allowed)
    found = torch_select.choose(keys, torch.full((1, 1, 1, 1), count))
    for b, (position, candidates) in enumerate(zip(positions, (0, 7, 50), strict=True)):
        for head in range(heads):
            hashes = []
            for page in range(candidates):
                h = mix(seed ^ 0x9E3779B9)
                for word in (salt, layer, head, page, position):
                    h = mix(h ^ word)
                hashes.append((h, page))
            wanted = sorted(page for _, page in sorted(hashes)[:count])
            assert found[b, head, 0].nonzero()[:, 0].tolist() == wanted


def test_static_sets() -> None:
    column_index, own = torch.arange(8), torch.tensor([[5], [7]])
    two, minus = torch.tensor([[2]]), torch.tensor([[-1]])
    assert pages(torch_select.static_set("first", column_index, own, two)) == [[0, 1], [0, 1]]
    assert pages(torch_select.static_set("last", column_index, own, two)) == [[4, 5], [6, 7]]
    assert pages(torch_select.static_set("first", column_index, own, minus)) == [[], []]
    assert pages(torch_select.static_set("last", column_index, own, minus)) == [[], []]
    three, five = torch.tensor([[3]]), torch.tensor([[5]])
    assert pages(torch_select.static_set("stride", column_index, own, three, five)) == [[2, 5], [2, 5]]
    assert pages(torch_select.static_set("stride", column_index, own, minus, five)) == [list(range(6)), list(range(8))]


def test_page_lists_and_masks_are_inverse() -> None:
    mask = torch.rand(3, 2, 4, 9, generator=torch.Generator().manual_seed(0)) < 0.4
    lists = PageLists.from_mask(mask)
    assert torch.equal(lists.to_mask(9), mask)
    assert torch.equal(lists.counts.long(), mask.sum(-1))
    union = lists.union()
    assert torch.equal(union.to_mask(9), mask.any(2, keepdim=True))
    assert lists.to_list()[1][0][2] == mask[1, 0, 2].nonzero()[:, 0].tolist()


def test_tokens_count_the_own_page_with_its_live_tokens() -> None:
    mask = torch.zeros(1, 1, 2, 4, dtype=torch.bool)
    mask[0, 0, 0, [0, 3]] = True
    mask[0, 0, 1, [1, 3]] = True
    lists = PageLists.from_mask(mask)
    assert lists.tokens(torch.tensor([50]), 16).tolist() == [[16 + 16 + 2]]
