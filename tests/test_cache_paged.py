"""The paged KV cache: what lies where, whatever the layout."""

from __future__ import annotations

import pytest
import torch

from vortexlab.dsl.errors import VortexError
from vortexlab.kernels.cache import PagedKV, Rows

HEADS, CHANNEL = 2, 8


def contexts(*lengths: int, seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    make = [[torch.randn(HEADS, n, CHANNEL, generator=generator) for n in lengths] for _ in range(2)]
    return make[0], make[1]


def relaid(cache: PagedKV, layout: str) -> PagedKV:
    """The same cache with its pools in another memory layout."""
    if layout == "tokens first":  # [blocks, block, kv_heads, channel]
        pools = [pool.transpose(1, 2).contiguous().transpose(1, 2) for pool in (cache.k, cache.v)]
    elif layout == "heads first":  # [blocks, kv_heads, block, channel]
        pools = [cache.k.contiguous(), cache.v.contiguous()]
    elif layout == "interleaved":  # keys and values in one tensor
        both = torch.cat([cache.k, cache.v], -1)
        pools = [both[..., :CHANNEL], both[..., CHANNEL:]]
    elif layout == "padded":  # rows longer than the channel, and an odd offset
        pools = []
        for pool in (cache.k, cache.v):
            wide = torch.full((*pool.shape[:3], CHANNEL + 3), torch.nan)
            wide[..., 1 : CHANNEL + 1] = pool
            pools.append(wide[..., 1 : CHANNEL + 1])
    else:  # token-contiguous per KV head
        pools = [cache.k, cache.v]
    return PagedKV(pools[0], pools[1], cache.table, cache.lengths, cache.block)


LAYOUTS = ("tokens first", "heads first", "interleaved", "padded", "contiguous")


@pytest.mark.parametrize("shuffle", [None, 3])
@pytest.mark.parametrize("block", [1, 4, 5])
def test_dense_round_trip(block: int, shuffle: int | None) -> None:
    keys, values = contexts(1, 9, 20)
    cache = PagedKV.from_dense(keys, values, block, shuffle_seed=shuffle)
    for row, (k, v) in enumerate(zip(keys, values, strict=True)):
        found_k, found_v = cache.dense(row)
        assert torch.equal(found_k, k) and torch.equal(found_v, v)


def test_append_writes_each_row_at_its_own_end() -> None:
    keys, values = contexts(3, 8)
    cache = PagedKV.from_dense(keys, values, 4, shuffle_seed=1, spare=2)
    new_k, new_v = torch.randn(2, HEADS, CHANNEL), torch.randn(2, HEADS, CHANNEL)
    cache.append(new_k, new_v)
    assert cache.lengths.tolist() == [4, 9]
    for row in range(2):
        k, v = cache.dense(row)
        assert torch.equal(k, torch.cat([keys[row], new_k[row][:, None]], 1))
        assert torch.equal(v, torch.cat([values[row], new_v[row][:, None]], 1))


def test_append_to_a_full_table_says_so() -> None:
    cache = PagedKV.from_dense(*contexts(8), 4)
    with pytest.raises(VortexError, match="the KV cache is full: 8 tokens a row"):
        cache.append(torch.zeros(1, HEADS, CHANNEL), torch.zeros(1, HEADS, CHANNEL))


def test_append_never_writes_into_the_block_of_another_row() -> None:
    cache = PagedKV.from_dense(*contexts(4, 7), 4)
    with pytest.raises(VortexError, match="no block left for its next token"):
        cache.append(torch.zeros(2, HEADS, CHANNEL), torch.zeros(2, HEADS, CHANNEL))
    assert cache.lengths.tolist() == [4, 7]


@pytest.mark.parametrize(("block", "page"), [(4, 4), (8, 4), (4, 8), (4, 12), (6, 2)])
def test_page_table_names_the_pages_of_the_pool(block: int, page: int) -> None:
    keys, values = contexts(24, 24)
    cache = PagedKV.from_dense(keys, values, block, shuffle_seed=2)
    table = cache.page_table(page)
    assert table.shape == (2, 24 // page)
    assert table.unique().numel() == table.numel() and int(table.max()) < cache.physical_pages(page)
    for row in range(2):
        for logical in range(24 // page):
            physical = int(table[row, logical])
            last = keys[row][:, (logical + 1) * page - 1]  # the page's last token
            inside = max(1, block // page)
            found = cache.k[physical // inside, :, (physical % inside + 1) * min(page, block) - 1]
            assert torch.equal(found, last)


def test_pages_that_do_not_fit_the_blocks_are_refused() -> None:
    cache = PagedKV.from_dense(*contexts(12), 4)
    with pytest.raises(VortexError, match="a page of 6 tokens does not fit a cache with blocks of 4"):
        cache.page_table(6)


def test_malformed_caches_are_refused() -> None:
    k = torch.zeros(3, HEADS, 4, CHANNEL)
    table, lengths = torch.zeros(2, 2, dtype=torch.int32), torch.ones(2, dtype=torch.int32)
    with pytest.raises(VortexError, match="needs k and v of shape"):
        PagedKV(k, k, table, lengths, 8)
    with pytest.raises(VortexError, match="next to each other"):
        PagedKV(k.transpose(2, 3).contiguous().transpose(2, 3), k, table, lengths, 4)
    with pytest.raises(VortexError, match="a table"):
        PagedKV(k, k, table, lengths[:1], 4)


def test_fork_shares_full_blocks_and_copies_the_last() -> None:
    keys, values = contexts(10, 8)
    cache = PagedKV.from_dense(keys, values, 4, shuffle_seed=5, free_blocks=6)
    fork = cache.fork([0, 0, 1], spare=3)
    assert fork.k.data_ptr() == cache.k.data_ptr()
    assert fork.table[0, :2].tolist() == fork.table[1, :2].tolist() == cache.table[0, :2].tolist()
    assert len({int(fork.table[0, 2]), int(fork.table[1, 2]), int(cache.table[0, 2])}) == 3
    new = torch.randn(3, HEADS, CHANNEL)
    fork.append(new, new)
    for row, source in enumerate([0, 0, 1]):
        assert torch.equal(fork.dense(row)[0], torch.cat([keys[source], new[row][:, None]], 1))
    for row in range(2):
        assert torch.equal(cache.dense(row)[0], keys[row])


def test_fork_without_room_says_so() -> None:
    cache = PagedKV.from_dense(*contexts(10), 4, free_blocks=1)
    with pytest.raises(VortexError, match="needs 2 free blocks and it has 1"):
        cache.fork([0], spare=3)


def test_recorded_contexts_are_views() -> None:
    k, v = torch.randn(HEADS, 48, CHANNEL), torch.randn(HEADS, 48, CHANNEL)
    cache = PagedKV.from_contiguous(k, v, [0, 16], [13, 30], 8)
    assert cache.k.data_ptr() == k.data_ptr()
    assert cache.table.shape == (2, 4)
    assert torch.equal(cache.dense(0)[0], k[:, :13]) and torch.equal(cache.dense(1)[1], v[:, 16:46])
    with pytest.raises(VortexError, match="context 0 of 17 tokens runs into the next one"):
        PagedKV.from_contiguous(k, v, [0, 16], [17, 30], 8)
    with pytest.raises(VortexError, match="multiple of the block"):
        PagedKV.from_contiguous(k, v, [0, 12], [12, 8], 8)


@pytest.mark.parametrize("page", [2, 4, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_read_every_layout(layout: str, page: int) -> None:
    keys, values = contexts(24, 17)
    cache = relaid(PagedKV.from_dense(keys, values, 4, shuffle_seed=7), layout)
    for pool, truth in ((cache.k, keys), (cache.v, values)):
        rows = Rows(pool, page)
        assert rows.atom in (1, min(page, 4))
        for row, tokens in enumerate(truth):
            whole = tokens.shape[1] // rows.atom
            atom = torch.arange(whole)
            blocks = cache.table[row].long()[atom * rows.atom // 4]
            for head in range(HEADS):
                index = rows.index(blocks, torch.tensor(head), atom % (4 // rows.atom))
                found = rows.memory[index].reshape(-1, CHANNEL)
                assert torch.equal(found, tokens[head, : whole * rows.atom])


def test_runs_are_found_and_viewed_in_place() -> None:
    keys, values = contexts(24, 24)
    cache = PagedKV.from_dense(keys, values, 4)
    rows = Rows(cache.k, 4)
    heads = torch.arange(HEADS)[:, None]
    index = rows.index(torch.arange(6)[None], heads, torch.tensor(0))
    tokens = torch.tensor([24, 24])
    firsts = rows.runs(index, tokens)
    view = rows.view(firsts, 24)
    assert view is not None and view.data_ptr() == cache.k.data_ptr()
    assert torch.equal(view, keys[0])
    broken = index.clone()
    broken[1, 3] = broken[1, 5]
    assert rows.runs(broken, tokens) == [firsts[0], -1]
    assert rows.runs(broken, torch.tensor([24, 12])) == firsts  # what lies past the tokens does not matter
    assert rows.view([firsts[0], -1], 24) is None
    assert rows.view([0, 1, 5], 4) is None  # not at equal distances


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16])
def test_a_cache_in_another_precision_holds_the_rounded_tokens(dtype: torch.dtype) -> None:
    k, v = contexts(20, 9)
    k[0][0, 3], k[1][1, 0] = 1e5, float("nan")
    cache = PagedKV.from_dense(k, v, 8, shuffle_seed=3, spare=2)
    other = cache.stored_in(dtype)
    largest = torch.finfo(dtype).max if dtype != torch.float16 else torch.inf
    assert other.k.dtype == other.v.dtype == dtype and cache.stored_in(torch.float32) is cache
    assert bool((other.dense(0)[0][0, 3].float() == largest).all()) and bool(other.dense(1)[0][1, 0].isnan().all())
    assert torch.equal(other.dense(0)[1].float(), v[0].to(dtype).float())
    other.append(torch.ones(2, HEADS, CHANNEL), torch.ones(2, HEADS, CHANNEL))
    latent = PagedKV.from_dense([x := torch.randn(1, 9, 12)], [x[..., :8]], 4).stored_in(dtype)
    assert latent.is_shared and latent.v.shape[-1] == 8, "values stay a part of the keys"
