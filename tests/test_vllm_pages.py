"""An engine's pool as pages (`deploy/vllm/pages.py`), without the engine: blocks are shared, freed and used again."""

from __future__ import annotations

import pytest
import torch

from vortexlab.deploy.vllm.pages import LayerPages, Rows, completed
from vortexlab.deploy.vllm.requests import Requests
from vortexlab.dsl.ir import Static
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.torch_executor import TorchExecutor
from vortexlab.search_spaces.library import load

HEADS, CHANNEL = 2, 8
ONE = torch.tensor([1])
STATIC = Static(HEADS, 2, CHANNEL, CHANNEL**-0.5, 0, 1)


def test_rows_are_picked_with_their_tokens_and_blocks() -> None:
    starts, lengths = torch.tensor([0, 1, 4, 4, 6], dtype=torch.int32), torch.tensor([9, 3, 0, 16], dtype=torch.int32)
    table = torch.tensor([[5, 6, 7, 9], [1, 9, 9, 9], [0, 0, 0, 0], [2, 3, 4, 8]], dtype=torch.int32)
    found = Rows.of(torch.tensor([0, 3]), starts, lengths, table, 4)
    assert found.tokens.tolist() == [0, 4, 5] and found.lengths.tolist() == [9, 16]
    assert found.fresh.tolist() == [1, 2]
    assert found.table.tolist() == [[5, 6, 7, -1], [2, 3, 4, 8]]
    none = Rows.of(torch.tensor([], dtype=torch.int64), starts, lengths, table, 4)
    assert none.tokens.numel() == 0 and none.table.shape == (0, 0)


def test_keys_and_values_are_views_of_the_pool() -> None:
    pool = torch.randn(6, HEADS, 4, 2 * CHANNEL)
    rows = Rows(torch.tensor([[3, 1]], dtype=torch.int32), torch.tensor([6], dtype=torch.int32), ONE, ONE)
    cache = rows.cache(pool[..., :CHANNEL], pool[..., CHANNEL:])
    assert cache.k.data_ptr() == pool.data_ptr() and cache.v[2, 1, 3].equal(pool[2, 1, 3, CHANNEL:])
    k, _ = cache.dense(0)
    assert torch.equal(k[:, 4:], pool[1, :, :2, :CHANNEL])


@pytest.mark.parametrize("page, expected", [(2, [3, 10, 11]), (4, [1, 5]), (8, [5])])
def test_pages_that_a_step_completes(page: int, expected: list[int]) -> None:
    """Row 0 has 8 tokens of which 5 are new (blocks 1 and 5), row 1 has 3 of which one is new (block 7)."""
    table = torch.tensor([[1, 5], [7, -1]], dtype=torch.int32)
    pool = torch.zeros(8, HEADS, 4, CHANNEL)
    cache = PagedKV(pool, pool, table, torch.tensor([8, 3], dtype=torch.int32), 4)
    assert completed(cache, torch.tensor([5, 1]), page).tolist() == expected


class Engine:
    """Block tables and a pool as a serving engine keeps them, filled with random tokens."""

    def __init__(self, blocks: int, block: int):
        self.pool, self.block = torch.zeros(blocks, HEADS, block, 2 * CHANNEL), block
        self.random = torch.Generator().manual_seed(1)

    def step(self, pages: LayerPages, tables: list[list[int]], lengths: list[int], fresh: list[int]) -> PagedKV:
        """Writes the newest `fresh` tokens of each request, and has their pages summarised."""
        for table, length, count in zip(tables, lengths, fresh, strict=True):
            for position in range(length - count, length):
                token = torch.randn(HEADS, 2 * CHANNEL, generator=self.random)
                self.pool[table[position // self.block], :, position % self.block] = token
        width = max(map(len, tables))
        held = torch.tensor([table + [-1] * (width - len(table)) for table in tables], dtype=torch.int32)
        rows = Rows(held, torch.tensor(lengths, dtype=torch.int32), torch.tensor(fresh), ONE)
        cache = rows.cache(self.pool[..., :CHANNEL], self.pool[..., CHANNEL:])
        pages.refresh(cache, rows.fresh, all(count == 1 for count in fresh))
        return cache


@pytest.mark.parametrize("page", [8, 16, 32])
def test_summaries_follow_the_pool(page: int) -> None:
    """A prompt in chunks, a second request on the same prefix, and one in blocks that were given back."""
    program = load("quest").bind({"page": page, "budget": 4})
    engine, pages = Engine(8, 16), LayerPages(program, STATIC, torch.device("cpu"))
    first, second = [6, 2, 3, 0], [6, 2, 5, 7]

    def check(cache: PagedKV) -> None:
        executor = TorchExecutor(program, STATIC)
        anew = executor.new_state(cache)
        executor.summarize(anew, cache)
        live = completed(cache, cache.lengths.long(), page)
        assert live.numel()
        for name, held in pages.state.fields.items():
            assert torch.equal(held[:, live], anew.fields[name][:, live])

    check(engine.step(pages, [first], [40], [40]))
    check(engine.step(pages, [first, second], [59, 40], [19, 8]))  # 32 tokens of the second are found in the cache
    for length in range(60, 65):
        check(engine.step(pages, [first, second], [length, length - 10], [1, 10 if length == 60 else 1]))
    check(engine.step(pages, [[3, 0, 1, 4], second], [64, 55], [64, 1]))  # the first was preempted, its blocks reused


def decoding(*rows: tuple[list[int], int]) -> Rows:
    """Decoding rows: their blocks of 4 and their lengths."""
    width = max((len(blocks) for blocks, _ in rows), default=0)
    table = torch.tensor([blocks + [-1] * (width - len(blocks)) for blocks, _ in rows], dtype=torch.int32)
    return Rows(table.view(len(rows), width), torch.tensor([length for _, length in rows]), ONE, ONE)


def places(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)


def test_a_request_is_known_by_where_it_wrote_its_newest_token() -> None:
    known = Requests(4)
    first = known.step(decoding(([5, 6], 6), ([7], 3)), places(25, 30), 4)
    assert first.begun == first.slots and len(set(first.slots)) == 2
    a, b = first.slots
    # Rows change places; a prompt joins, and then decodes; a row that is left out for a step is still known.
    second = known.step(decoding(([7], 4), ([5, 6], 7)), places(31, 26, 32, 33), 4)
    assert (second.slots, second.begun) == ([b, a], [])
    third = known.step(decoding(([8], 3), ([7, 9], 5)), places(34, 36), 4)
    (c,) = third.begun
    assert third.slots == [c, b] and c not in (a, b)
    assert known.step(decoding(([5, 6], 8)), places(27), 4).slots == [a]


def test_blocks_that_are_used_again_name_nobody() -> None:
    known = Requests(4)
    (a,) = known.step(decoding(([5, 6], 6)), places(25), 4).slots
    # Its blocks were given back; a prompt of another request ends where it was going on.
    assert known.step(decoding(), places(24, 25), 4).slots == []
    again = known.step(decoding(([2, 6], 7)), places(26), 4)
    assert again.begun == again.slots
    # A full block is shared: who found it wrote a token of its own behind it.
    (a,) = known.step(decoding(([1], 4)), places(7), 4).slots
    both = known.step(decoding(([1, 2], 5)), places(8, 12), 4)  # 12: the other's one token, read as a prompt
    assert both.slots == [a] and both.begun == []
    both = known.step(decoding(([1, 2], 6), ([1, 3], 6)), places(9, 13), 4)
    assert both.slots[0] == a and both.begun == both.slots[1:]


def test_with_too_many_requests_the_one_seen_least_lately_begins_anew() -> None:
    known = Requests(2)
    (a,) = known.step(decoding(([1], 2)), places(5), 4).slots
    (b,) = known.step(decoding(([2], 2)), places(9), 4).slots
    (c,) = known.step(decoding(([3], 2)), places(13), 4).slots
    assert c == a and known.step(decoding(([2], 3)), places(10), 4).slots == [b]
    assert known.step(decoding(([1], 3)), places(6), 4).begun == [a]


def test_the_last_place_of_a_block_names_only_who_decoded_just_before() -> None:
    """Others may find a full block, and its owner after a preemption; neither is a request that goes on."""
    known = Requests(4)
    (a,) = known.step(decoding(([5], 4)), places(23), 4).slots
    assert known.step(decoding(([5, 6], 5)), places(24), 4).slots == [a]  # it goes on into its next block
    known.step(decoding(([7], 4)), places(31), 4)
    known.step(decoding(([2], 2)), places(9), 4)  # a step without it: preempted, and then found again
    again = known.step(decoding(([7, 8], 5)), places(32), 4)
    assert again.begun == again.slots
    known.step(decoding(([1], 4)), places(7), 4)
    both = known.step(decoding(([1, 2], 5), ([1, 3], 5)), places(8, 12), 4)  # which of them it was, nobody can say
    assert both.begun == both.slots and len(set(both.slots)) == 2
