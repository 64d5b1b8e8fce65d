"""The torch executor against the reference: layouts, ragged batches, shared blocks, growing caches, own lists."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from test_cache_paged import LAYOUTS

from vortexlab.dsl import reference
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.dsl.parser import parse
from vortexlab.kernels import torch_attend
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import Executor, PageLists
from vortexlab.kernels.torch_executor import PageState, TorchExecutor

STATIC = Static(kv_heads=2, group=3, head_dim=8, scale=0.35, layer=1, layers=3)
LENGTHS = (1, 4, 5, 16, 17, 39)

QUEST = """
    def summarize(k):
        return dict(lo=k.min(token), hi=k.max(token))

    def score(q, s):
        return maximum(q * s.lo, q * s.hi).sum(channel).max(head)

    def select(score):
        return topk(score, 2) | first(1) | last(2)
"""
PROGRAMS = {
    "quest": QUEST,
    "own lists": """
    def summarize(k):
        return dict(centre=k.sum(token))

    def score(q, s):
        return dot(q, s.centre, channel)

    def select(score, ctx):
        return topk(score, 1) | above(score, score.mean(page), max=2) | random(1, among=~first(1))
""",
    "two levels": """
    def summarize(k, v):
        return dict(parts=k.split(token, part=2).max(token), weight=v.max(channel).max(token))

    def score(q, s):
        fine = dot(q, s.parts, channel).max(part).max(head)
        return dict(coarse=share(s.weight, "sum"), fine=fine - fine.min(page))

    def select(score, ctx):
        return topk(score.fine, floor(sqrt(ctx.length) / 2), among=topk(score.coarse, 6) - first(1)) | stride(3)
""",
    "budget from scores": """
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score, ctx):
        return topk(score, floor(where(score > 2, 1.0, 0.0).sum(page) / 2)) | topp(score, 0.6, max=3)
""",
    "by layer": """
    def select(ctx):
        return where(ctx.layer < 1, everything(), where(ctx.pages % 2 == 0, first(2), last(3)))
""",
}


def program(body: str, page: int = 4, options: str = "") -> Program:
    return parse(f"from vortexlab.dsl import *\n\n\n@program(page={page}{options})\nclass P:\n{body}").bind()


def whole_numbers(*shape: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(-4, 5, shape, generator=generator).float()


def batch(lengths: Sequence[int], seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """q, keys and values of small whole numbers, on which scores of sums and products are exact."""
    g = torch.Generator().manual_seed(seed)
    shape = [(STATIC.kv_heads, n, STATIC.head_dim) for n in lengths]
    keys, values = [whole_numbers(*s, generator=g) for s in shape], [torch.randn(*s, generator=g) for s in shape]
    return whole_numbers(len(lengths), STATIC.kv_heads * STATIC.group, STATIC.head_dim, generator=g), keys, values


def agree(executor: TorchExecutor, state: PageState, cache: PagedKV, q: torch.Tensor, close: float = 1e-5) -> PageLists:
    """One step, equal to the reference's on what the cache holds."""
    dense = [cache.dense(row) for row in range(cache.batch)]
    wanted = reference.run(executor.program, executor.static, q, [k for k, _ in dense], [v for _, v in dense])
    out, lists = executor.decode(q, state, cache)
    found = [[[tuple(pages) for pages in per_kv] for per_kv in row] for row in lists.to_list()]
    assert found == [[[tuple(pages) for pages in per_kv] for per_kv in row] for row in wanted.lists]
    assert out.dtype == q.dtype
    torch.testing.assert_close(out.double(), wanted.output.double(), atol=close, rtol=0)
    read = lists.tokens(cache.lengths, executor.program.page_size) / cache.lengths[:, None]
    assert abs(float(read.mean()) - wanted.density) < 1e-6
    return lists


def start(body: str, cache: PagedKV, page: int = 4, options: str = "") -> tuple[TorchExecutor, PageState]:
    executor: Executor = TorchExecutor(program(body, page, options), STATIC)
    state = executor.new_state(cache)
    executor.summarize(state, cache)
    assert isinstance(executor, TorchExecutor)
    return executor, state


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(("page", "block"), [(4, 4), (4, 8), (8, 4), (2, 1)])
def test_equals_the_reference_on_ragged_batches(name: str, page: int, block: int) -> None:
    q, keys, values = batch(LENGTHS)
    cache = PagedKV.from_dense(keys, values, block, shuffle_seed=1)
    executor, state = start(PROGRAMS[name], cache, page)
    agree(executor, state, cache, q)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("page", [2, 4, 12])
def test_equals_the_reference_in_every_memory_layout(layout: str, page: int) -> None:
    from test_cache_paged import relaid

    q, keys, values = batch((30, 13))
    cache = relaid(PagedKV.from_dense(keys, values, 4, shuffle_seed=2), layout)
    executor, state = start(QUEST, cache, page)
    agree(executor, state, cache, q)


@pytest.mark.parametrize("name", PROGRAMS)
def test_one_request_alone_equals_its_row_in_a_batch(name: str) -> None:
    q, keys, values = batch(LENGTHS, seed=3)
    cache = PagedKV.from_dense(keys, values, 4)
    executor, state = start(PROGRAMS[name], cache)
    together = executor.select(q, state, cache).to_list()
    for row in range(len(LENGTHS)):
        alone = PagedKV(cache.k, cache.v, cache.table[row : row + 1], cache.lengths[row : row + 1], 4)
        assert executor.select(q[row : row + 1], state, alone).to_list()[0] == together[row]


@pytest.mark.parametrize("page", [2, 4, 8])
def test_a_cache_that_grows_equals_one_from_scratch(page: int) -> None:
    _, keys, values = batch((1, 6, 15))
    cache = PagedKV.from_dense(keys, values, 4, shuffle_seed=4, spare=20)
    executor, state = start(QUEST, cache, page)
    for step in range(18):
        g = torch.Generator().manual_seed(step)
        size = (3, STATIC.kv_heads, STATIC.head_dim)
        cache.append(whole_numbers(*size, generator=g), torch.randn(*size, generator=g))
        executor.update(state, cache)
        agree(executor, state, cache, whole_numbers(3, STATIC.kv_heads * STATIC.group, STATIC.head_dim, generator=g))


def test_requests_that_share_a_context_share_its_summaries() -> None:
    q, keys, values = batch((21, 10))
    cache = PagedKV.from_dense(keys, values, 4, shuffle_seed=4, free_blocks=12)
    executor, state = start(QUEST, cache)
    fork = cache.fork([0, 1, 0], spare=5)
    for step in range(5):
        g = torch.Generator().manual_seed(step)
        size = (3, STATIC.kv_heads, STATIC.head_dim)
        fork.append(whole_numbers(*size, generator=g), torch.randn(*size, generator=g))
        executor.update(state, fork)  # the pages of the shared context are not summarised again
        agree(executor, state, fork, whole_numbers(3, STATIC.kv_heads * STATIC.group, STATIC.head_dim, generator=g))
    agree(executor, state, cache, q)


def test_summarize_writes_the_named_pages_only() -> None:
    _, keys, values = batch((16, 9))
    cache = PagedKV.from_dense(keys, values, 4, shuffle_seed=6)
    executor = TorchExecutor(program(QUEST), STATIC)
    state = executor.new_state(cache)
    page = cache.page_table(4)[1, 0]
    executor.summarize(state, cache, page[None])
    low = state.fields["lo"]
    torch.testing.assert_close(low[:, page], keys[1][:, :4].amin(1))
    others = [p for p in range(low.shape[1]) if p != page]
    assert not low[:, others].any()
    with pytest.raises(VortexError, match="no row of the table holds one of the given physical pages complete"):
        executor.summarize(state, cache, cache.page_table(4)[1, 2:3])


@pytest.mark.parametrize(("options", "dtype"), [(', summaries="bf16"', torch.bfloat16), ("", torch.float32)])
def test_summaries_are_stored_in_the_declared_precision(options: str, dtype: torch.dtype) -> None:
    _, keys, values = batch((16,))
    cache = PagedKV.from_dense([k + 0.123 for k in keys], values, 4)
    _, state = start(QUEST, cache, options=options)
    assert state.fields["lo"].dtype == dtype
    assert torch.equal(state.fields["lo"][:, 0], (keys[0] + 0.123)[:, :4].amin(1).to(dtype))


def test_dead_summaries_are_not_stored() -> None:
    _, keys, values = batch((16,))
    cache = PagedKV.from_dense(keys, values, 4)
    _, state = start(
        QUEST.replace("hi=k.max(token))", "hi=k.max(token), unused=v.norm(token))").replace("(k)", "(k, v)"), cache
    )
    assert set(state.fields) == {"lo", "hi"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_caches(dtype: torch.dtype) -> None:
    q, keys, values = batch((39, 8, 17))
    cache = PagedKV.from_dense([k.to(dtype) for k in keys], [v.to(dtype) for v in values], 4, shuffle_seed=1)
    executor, state = start(QUEST, cache)
    agree(executor, state, cache, q)
    out, _ = executor.decode(q.to(dtype), state, cache)
    assert out.dtype == dtype


def test_memory_past_the_end_is_never_used() -> None:
    q, keys, values = batch((18, 39, 5))
    cache = PagedKV.from_dense(keys, values, 4, shuffle_seed=1, free_blocks=2)
    clean, lists = cache.dense(0)[0].clone(), None
    used = torch.zeros(cache.k.shape[0], 4, dtype=torch.bool)
    for row, length in enumerate((18, 39, 5)):
        token = torch.arange(length)
        used[cache.table[row].long()[token // 4], token % 4] = True
    for pool in (cache.k, cache.v):
        pool.masked_fill_(~used[:, None, :, None], torch.nan)
    executor, state = start(PROGRAMS["own lists"], cache)
    lists = agree(executor, state, cache, q)
    assert lists.pages.shape[2] == STATIC.group and torch.equal(cache.dense(0)[0], clean)


@pytest.mark.parametrize("tile", [1, 1 << 30])
def test_attention_does_not_depend_on_tiles(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_attend, "TILE_BYTES", tile)
    q, keys, values = batch(LENGTHS, seed=8)
    for name in ("own lists", "by layer"):
        cache = PagedKV.from_dense(keys, values, 4, shuffle_seed=3)
        agree(*start(PROGRAMS[name], cache), cache, q)


def test_whole_contexts_are_read_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_attend, "TILE_BYTES", 1)  # long enough to be worth it
    q, keys, values = batch((40, 40))
    cache = PagedKV.from_dense(keys, values, 4)
    body = "    def select():\n        return everything()\n"
    monkeypatch.setattr(torch_attend, "_gather", None)  # any gather would fail
    executor, state = start(body, cache)
    agree(executor, state, cache, q)
    shuffled = PagedKV.from_dense(keys, values, 4, shuffle_seed=1)
    with pytest.raises(TypeError):
        executor.attend(q, shuffled, executor.select(q, state, shuffled))


def test_the_pool_is_never_written_by_attention() -> None:
    q, keys, values = batch((18, 40))
    for shuffle in (None, 1):
        cache = PagedKV.from_dense(keys, values, 4, shuffle_seed=shuffle)
        before = cache.k.clone(), cache.v.clone()
        executor, state = start(QUEST, cache)
        executor.decode(q, state, cache)
        assert torch.equal(cache.k, before[0]) and torch.equal(cache.v, before[1])


def test_attention_under_given_lists() -> None:
    q, keys, values = batch((22,))
    cache = PagedKV.from_dense(keys, values, 4, shuffle_seed=9)
    pages = torch.tensor(
        [[[[1, 5, -1], [0, 3, 5], [5, -1, -1]], [[0, 1, 5], [5, -1, -1], [2, 4, 5]]]], dtype=torch.int32
    )
    lists = PageLists(pages, (pages >= 0).sum(-1).int())
    given = [[[tuple(p for p in row if p >= 0) for row in per_kv] for per_kv in item] for item in pages.tolist()]
    wanted = reference.attend(4, STATIC, q.double(), [keys[0].double()], [values[0].double()], given)
    found = TorchExecutor(program(QUEST), STATIC).attend(q, cache, lists)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=0)


def test_buffers_are_reused_between_steps() -> None:
    workspace, cpu = torch_attend.Workspace(), torch.device("cpu")
    first = workspace.take("k", (4, 8), torch.float32, cpu)
    assert workspace.take("k", (2, 8), torch.float32, cpu).data_ptr() == first.data_ptr()
    assert workspace.take("v", (4, 8), torch.float32, cpu).data_ptr() != first.data_ptr()
    assert workspace.take("k", (4, 8), torch.float64, cpu).dtype == torch.float64


def test_inference_mode_may_be_left_and_entered() -> None:
    q, keys, values = batch((22, 9))
    cache = PagedKV.from_dense(keys, values, 4, shuffle_seed=1, spare=8)
    with torch.inference_mode():
        executor, state = start(QUEST, cache)
        agree(executor, state, cache, q)
    executor.summarize(state, cache)
    agree(executor, state, cache, q)


def test_programs_with_open_knobs_are_refused() -> None:
    body = "    n = knob.int(1, 8, default=2)\n\n    def select():\n        return first(n)\n"
    open_program = parse(f"from vortexlab.dsl import *\n\n\n@program(page=4)\nclass P:\n{body}")
    with pytest.raises(VortexError, match="still has knobs; bind it before running it"):
        TorchExecutor(open_program, STATIC)
