"""The rules of meaning, one by one, on the reference and on every executor that runs on a CPU.

Expectations are written out by hand on inputs small enough to follow. State over steps and layers (rule 8) and fp8
summaries (rule 10) have further tests in `test_reference_state` and `test_reference_values`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from tests.differential import page_lists
from vortexlab.dsl import parse
from vortexlab.dsl.errors import ProgramError, VortexError
from vortexlab.dsl.ir import Static
from vortexlab.dsl.reference import Lists, attend, density, run, summaries
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.torch_executor import TorchExecutor

PAGE, WIDTH = 4, 8
Runner = Callable[..., list[list[Lists]]]


def static(kv_heads: int = 1, group: int = 1, layer: int = 0, layers: int = 4) -> Static:
    return Static(kv_heads, group, WIDTH, 0.5, layer, layers)


def by_reference(
    text: str, where: Static, q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]
) -> list[list[Lists]]:
    return run(parse(text).bind(), where, q, keys, values).lists


def by_torch(
    text: str, where: Static, q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]
) -> list[list[Lists]]:
    executor = TorchExecutor(parse(text).bind(), where)
    cache = PagedKV.from_dense(list(keys), list(values), PAGE, shuffle_seed=3)
    state = executor.new_state(cache)
    executor.summarize(state, cache)
    found = executor.select(q, state, cache).to_list()
    return [[[tuple(pages) for pages in per_kv] for per_kv in row] for row in found]


@pytest.fixture(params=[by_reference, by_torch], ids=["reference", "torch"])
def select(request: pytest.FixtureRequest) -> Runner:
    return request.param  # type: ignore[no-any-return]


def program(select: str, score: str = "", summary: str = "", options: str = f"page={PAGE}") -> str:
    text = f"@program({options})\nclass P:\n"
    if summary:
        text += f"    def summarize(k, v):\n        return {summary}\n"
    if score:
        text += f"    def score(q, s, ctx):\n        return {score}\n"
    return text + f"    def select({'score, ' if score else ''}ctx):\n        return {select}\n"


#: The score of a page is the sum of its keys' first channel times the query's, so a context spells out its scores.
PLAIN = {"summary": "dict(c=k.max(token))", "score": "dot(q, s.c, channel).max(head)"}


def context(*scores: float, tokens: int | None = None, heads: int = 1) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """One request whose complete pages have these scores (under `PLAIN` and a query of one 1), and one more token.

    `tokens` counts those of the last, unfinished page. Values number the tokens.
    """
    tokens = 1 if tokens is None else tokens
    k = torch.zeros(heads, len(scores) * PAGE + tokens, WIDTH)
    for page, score in enumerate(scores):
        k[:, page * PAGE : (page + 1) * PAGE, 0] = score
    v = torch.arange(k.shape[1], dtype=torch.float32)[None, :, None].expand(k.shape).contiguous()
    q = torch.zeros(1, heads, WIDTH)
    q[..., 0] = 1
    return q, [k], [v]


def chosen(select: Runner, selector: str, *scores: float, **options: str) -> tuple[int, ...]:
    """The list of a request whose pages score as given; its own page, the last, holds one token."""
    return select(program(selector, **{**PLAIN, **options}), static(), *context(*scores))[0][0][0]


def test_rule_1_axes_are_named_and_split_keeps_token_order(select: Runner) -> None:
    # Page 0 has its key in the first half of its tokens, page 1 in the second.
    q, keys, values = context(0, 0, 0)
    keys[0][0, 1, 0], keys[0][0, PAGE + 2, 0] = 5, 5
    half = {"summary": "dict(c=k.split(token, part=2).max(token))"}
    weigh = "(dot(q, s.c, channel).max(head) * {}).max(part)"
    # Parts are told apart by comparing with what the first part of the first page holds.
    text = program("topk(score, 1)", score=weigh.format("where(s.c.max(channel) > 0, 1.0, -1.0)"), **half)
    assert select(text, static(), q, keys, values)[0][0][0] == (0, 3)
    k_page = torch.arange(PAGE * WIDTH, dtype=torch.float64).view(PAGE, WIDTH)
    split = summaries(parse(program("topk(score, 1)", score="s.c.sum(channel).sum(part)", **half)).bind(), static(),
                      k_page, k_page)["c"]  # fmt: skip
    assert split.axes == ("part", "channel")
    assert torch.equal(split.tensor, torch.stack([k_page[1], k_page[3]]))


def test_rule_1_a_contraction_names_its_axis_and_rename_makes_a_second(select: Runner) -> None:
    # The Gram matrix of the tokens: its largest entry off the diagonal is high where two tokens agree.
    q, keys, values = context(0, 0, 0)
    keys[0][0, 0:2, 3] = 2  # page 0: two tokens that agree
    keys[0][0, PAGE, 3] = 2.5  # page 1: one longer token, alone
    gram = "dict(g=dot(k, k.rename(token, other), channel))"
    assert select(program("topk(score, 1)", score="s.g.sum(other).sum(token)", summary=gram), static(), q, keys,
                  values)[0][0][0] == (0, 3)  # fmt: skip
    assert select(program("topk(score, 1)", score="s.g.max(other).max(token)", summary=gram), static(), q, keys,
                  values)[0][0][0] == (1, 3)  # fmt: skip
    with pytest.raises(ProgramError, match="axis-missing"):
        parse(program("topk(score, 1)", score="dot(q, s.c, token).max(head)", summary="dict(c=k.mean(token))"))


def test_rule_1_a_leftover_axis_is_an_error_with_a_hint() -> None:
    with pytest.raises(ProgramError, match=r"score-axes.*hint: reduce channel"):
        parse(program("topk(score, 1)", score="(q * s.c).max(head)", summary="dict(c=k.mean(token))"))


def test_rule_1_q_and_k_are_unscaled_and_scores_are_fp32(select: Runner) -> None:
    # 1 + 2^-10 is another number than 1 in fp32, the same in bf16.
    close = 1 + 2.0**-10
    assert chosen(select, "topk(score, 1)", 1, close) == (1, 2)
    assert chosen(select, "topk(score, 1)", 1, close, score='dot(q, s.c, channel).max(head).to("bf16")') == (0, 2)
    assert chosen(select, "above(score, 0.75)", 1, 1) == (0, 1, 2), "the score is q.k, not scale * q.k"
    assert chosen(select, "above(score * ctx.scale, 0.75)", 1, 2) == (1, 2), "ctx.scale is the model's softmax scale"


def test_rule_2_a_score_with_heads_makes_a_list_per_query_head(select: Runner) -> None:
    q, keys, values = context(0, 0, 0)
    keys[0][0, :PAGE, 0], keys[0][0, PAGE : 2 * PAGE, 1] = 1, 1
    q = torch.zeros(1, 2, WIDTH)
    q[0, 0, 0], q[0, 1, 1] = 1, 1
    per_head = {**PLAIN, "score": "dot(q, s.c, channel)"}
    lists = select(program("topk(score, 1)", **per_head), static(group=2), q, keys, values)
    assert lists[0][0] == [(0, 3), (1, 3)]
    mixed = select(program("topk(score, 1) | first(3) - first(2)", **per_head), static(group=2), q, keys, values)
    assert mixed[0][0] == [(0, 2, 3), (1, 2, 3)]
    assert density(PAGE, 13, lists[0]) == 9 / 13, "the KV head reads the union of its heads' lists"
    # Each head attends its own list: values number the tokens, keys of page 0 and 1 pull equally.
    output = attend(PAGE, static(group=2), q.double(), [keys[0].double()], [values[0].double()], lists)
    weight = math.exp(0.5) * 4 / (math.exp(0.5) * 4 + 1)
    assert output[0, 0, 0].item() == pytest.approx(weight * 1.5 + (1 - weight) * 12)
    assert output[0, 1, 0].item() == pytest.approx(weight * 5.5 + (1 - weight) * 12)


@pytest.mark.parametrize(("how", "page"), [("sum", 2), ("max", 0), ("mean", 2)])
def test_rule_2_share_gives_one_list_per_request(select: Runner, how: str, page: int) -> None:
    q, keys, values = context(0, 0, 0, heads=2)
    for kv, scores in enumerate([(5, 0, 3), (0, 1, 3)]):
        for p, score in enumerate(scores):
            keys[0][kv, p * PAGE : (p + 1) * PAGE, 0] = score
    apart = select(program("topk(score, 1)", **PLAIN), static(kv_heads=2), q, keys, values)
    assert apart[0] == [[(0, 3)], [(2, 3)]]
    text = program("topk(score, 1)", summary=PLAIN["summary"], score=f'share({PLAIN["score"]}, "{how}")')
    assert select(text, static(kv_heads=2), q, keys, values)[0] == [[(page, 3)], [(page, 3)]]


@pytest.mark.parametrize("tokens", [1, 3, 4])
def test_rule_3_own_page_is_always_read_and_never_a_candidate(select: Runner, tokens: int) -> None:
    q, keys, values = context(1, 2, 3, tokens=tokens)
    keys[0][0, 3 * PAGE :, 0] = 100  # the best score of all, full or not, and yet no candidate
    for selector, wanted in {
        "topk(score, 0)": (3,),
        "topk(score, 1)": (2, 3),
        "last(1)": (3,),
        "last(2)": (2, 3),
        "everything() - last(1)": (0, 1, 2, 3),
        "above(score, 2.5)": (2, 3),
        "random(99)": (0, 1, 2, 3),
        "first(1) - everything()": (3,),
    }.items():
        assert select(program(selector, **PLAIN), static(), q, keys, values)[0][0][0] == wanted, selector


def test_rule_3_a_page_becomes_a_candidate_at_the_step_after_its_last_token(select: Runner) -> None:
    full = context(1, 2, 9, tokens=0)
    assert select(program("topk(score, 1)", **PLAIN), static(), *full)[0][0][0] == (1, 2), "just completed: still own"
    assert chosen(select, "topk(score, 1)", 1, 2, 9) == (2, 3), "one token later"


def test_rule_4_sets_combine_by_plain_algebra(select: Runner) -> None:
    a, b = {0, 1, 2, 3}, {0, 3, 6}
    everything = set(range(9))
    for selector, wanted in {
        "first(4) | stride(3)": a | b, "first(4) & stride(3)": a & b, "first(4) - stride(3)": a - b,
        "~first(4)": everything - a, "~(first(4) | stride(3)) | first(0)": everything - a - b,
        "stride(3, offset=1)": {1, 4, 7}, "stride(3, offset=-2)": {1, 4, 7}, "stride(0)": everything,
        "first(-3)": set(), "last(99)": everything, "first(2) & last(2)": set(),
        "where(ctx.pages == 9, first(1), everything())": {0}, "where(ctx.pages > 9, first(1), stride(8))": {0, 8},
    }.items():  # fmt: skip
        assert chosen(select, selector, *range(8)) == tuple(sorted(wanted | {8})), selector


def test_rule_4_scored_selectors_choose_among_all_candidates_by_default(select: Runner) -> None:
    for selector, wanted in {
        "topk(score, 2)": {0, 5},
        "topk(score, 2, among=~first(1))": {5, 3},
        "topk(score, 9, among=stride(3))": {0, 3},
        "topk(score, 1, among=last(1))": set(),
        "above(score, 4.0)": {0, 5},
        "above(score, 3.0, max=2)": {0, 5},
        "above(score, 2.0, max=2, among=~first(1))": {5, 3},
        "above(score, score.mean(page))": {0, 3, 5},
        "random(2, among=first(2))": {0, 1},
    }.items():
        assert chosen(select, selector, 9, 1, 2, 4, 0, 7) == tuple(sorted(wanted | {6})), selector


def test_rule_4_topp_is_the_smallest_set_that_reaches_the_mass(select: Runner) -> None:
    # exp(2 * score) weighs 16 : 8 : 4 : 2 : 2, so the masses are 1/2, 1/4, 1/8, 1/16, 1/16.
    scores = [math.log(w) / 2 for w in (2, 16, 4, 8, 2)]
    for selector, wanted in {
        "topp(score, 0.4, scale=2.0)": {1},
        "topp(score, 0.6, scale=2.0)": {1, 3},
        "topp(score, 0.9, scale=2.0)": {1, 2, 3, 0},
        "topp(score, 1.5, scale=2.0)": {0, 1, 2, 3, 4},
        "topp(score, 0.0, scale=2.0)": {1},
        "topp(score, -1.0, scale=2.0)": {1},
        "topp(score, 0.9, scale=2.0, max=2)": {1, 3},
        "topp(score, 0.9, scale=2.0, max=0)": set(),
        "topp(score, 0.3, scale=0.0)": {1, 3},
        "topp(score, 0.6, scale=2.0, among=~stride(9, offset=1))": {3, 2},
    }.items():
        assert chosen(select, selector, *scores) == tuple(sorted(wanted | {5})), selector


def test_rule_4_check_warns_when_a_budget_may_go_to_forced_pages() -> None:
    from vortexlab.dsl import check

    _, findings = check(program("topk(score, 4) | first(1)", **PLAIN))
    assert [f.code for f in findings] == ["budget-on-forced"]
    _, findings = check(program("topk(score, 4, among=~first(1)) | first(1)", **PLAIN))
    assert findings == []


def test_rule_5_equal_scores_go_to_the_smaller_page(select: Runner) -> None:
    assert chosen(select, "topk(score, 2)", 1, 3, 1, 3, 3) == (1, 3, 5)
    assert chosen(select, "topk(score, 3)", 0.0, 0.0, 0.0, 0.0) == (0, 1, 2, 4)
    assert chosen(select, "above(score, 0.0, max=1)", 2, 2) == (0, 2)
    assert chosen(select, "topp(score, 0.4)", 1, 1, 1, 1) == (0, 1, 4)
    # -0 equals +0: negating the scores of zeros must not move the order.
    assert chosen(select, "topk(-score, 1)", 0.0, 0.0) == (0, 2)
    mixed = "where(s.c.max(channel) > 1, -0.0, 0.0) * dot(q, s.c, channel).max(head)"
    assert chosen(select, "topk(score, 1)", 4, 1, score=mixed) == (0, 2)


def test_rule_5_minus_infinity_is_never_chosen(select: Runner) -> None:
    score = "log(dot(q, s.c, channel).max(head))"
    assert chosen(select, "topk(score, 9)", 0, 2, 0, 1, score=score) == (1, 3, 4)
    assert chosen(select, "topp(score, 1.5)", 0, 2, 0, 1, score=score) == (1, 3, 4)
    assert chosen(select, "topk(score, 9)", 0, 0, score=score) == (2,)


def test_rule_5_nan_is_flagged_and_never_chosen(select: Runner) -> None:
    score = "sqrt(dot(q, s.c, channel).max(head))"
    assert chosen(select, "topk(score, 9)", -1, 4, -1, 1, score=score) == (1, 3, 4)
    text = program("topk(score, 9)", **{**PLAIN, "score": score})
    assert run(parse(text).bind(), static(), *context(-1, 4, -1, 1)).nan
    assert not run(parse(text).bind(), static(), *context(1, 4, 0, 1)).nan


def test_rule_5_ties_that_decided_are_counted() -> None:
    text = parse(program("topk(score, 2)", **PLAIN)).bind()
    for scores, ties in {(1, 3, 1, 3, 3): 2, (3, 3, 1): 0, (1, 2, 1): 1, (1, 1): 0}.items():
        step = run(text, static(), *context(*scores))
        assert (step.ties, step.chosen) == (ties, 2), scores


def test_rule_6_random_is_a_hash_of_seed_layer_head_page_and_position(select: Runner) -> None:
    def drawn(where: Static, length: int, options: str = "", rows: int = 1) -> list[list[Lists]]:
        k = torch.zeros(where.kv_heads, length, WIDTH)
        q = torch.zeros(rows, where.kv_heads, WIDTH)
        text = program(f"random(3{options})", options=f"page={PAGE}, seed=7")
        return select(text, where, q, [k] * rows, [k] * rows)

    # Worked out by a C program with 32-bit unsigned integers.
    base = drawn(static(kv_heads=2, layer=1), 81)
    assert base == [[[EXPECTED_DRAWS[0]], [EXPECTED_DRAWS[1]]]]
    assert drawn(static(kv_heads=2, layer=1), 81, rows=3) == base * 3, "the slot in the batch is nothing to it"
    assert drawn(static(kv_heads=2, layer=2), 81) != base
    assert drawn(static(kv_heads=2, layer=1), 82) != base
    assert drawn(static(kv_heads=2, layer=1), 81, ", salt=1") != base


#: Least three of the hashes of pages 0..19 at seed 7, salt 0, layer 1, KV heads 0 and 1, position 80; own page 20.
EXPECTED_DRAWS = ((0, 7, 10, 20), (7, 10, 19, 20))


def test_rule_7_a_batch_equals_its_requests_one_by_one(select: Runner) -> None:
    generator = torch.Generator().manual_seed(0)
    keys = [torch.randint(-3, 4, (2, n, WIDTH), generator=generator).float() for n in (33, 4, 50, 1)]
    q = torch.randint(-3, 4, (4, 4, WIDTH), generator=generator).float()
    text = program("topk(score, 3) | random(1)", **PLAIN)
    where = static(kv_heads=2, group=2)
    together = select(text, where, q, keys, keys)
    assert together == [select(text, where, q[b : b + 1], [keys[b]], [keys[b]])[0] for b in range(4)]


def test_rule_8_page_state_is_a_function_of_the_pages_tokens(select: Runner) -> None:
    # The same page at another place, after other tokens, is scored the same.
    generator = torch.Generator().manual_seed(1)
    page = torch.randint(-3, 4, (1, PAGE, WIDTH), generator=generator).float()
    rest = torch.randint(-3, 4, (1, 3 * PAGE, WIDTH), generator=generator).float()
    q = page[:, 0][None]
    text = program("topk(score, 1)", score="-(q - s.c).norm(channel).max(head)", summary="dict(c=k.mean(token))")
    q = page.mean(1)[None]
    for place in range(4):
        k = torch.cat([rest[:, : place * PAGE], page, rest[:, place * PAGE :], page[:, :1]], 1)
        assert select(text, static(), q, [k], [k])[0][0][0] == (place, 4)
    with pytest.raises(ProgramError, match="summary-not-pure"):
        parse("@program(page=4)\nclass P:\n    def summarize(k, ctx):\n        return dict(c=k * ctx.length)\n"
              "    def select(ctx):\n        return first(1)\n")  # fmt: skip


def test_rule_8_summaries_are_rounded_to_their_declared_precision(select: Runner) -> None:
    close = 1 + 2.0**-10
    exact, coarse = (f'page={PAGE}, summaries="{dtype}"' for dtype in ("fp32", "bf16"))
    q, keys, values = context(1, close)
    assert select(program("topk(score, 1)", **PLAIN, options=exact), static(), q, keys, values)[0][0][0] == (1, 2)
    assert select(program("topk(score, 1)", **PLAIN, options=coarse), static(), q, keys, values)[0][0][0] == (0, 2)


def test_rule_9_where_on_compile_time_values_chooses_between_sets(select: Runner) -> None:
    text = program("where(ctx.layer < 2, everything(), last(ctx.layer))", **PLAIN)
    for layer, wanted in {0: (0, 1, 2, 3), 1: (0, 1, 2, 3), 2: (2, 3), 3: (1, 2, 3)}.items():
        assert select(text, static(layer=layer), *context(1, 2, 3))[0][0][0] == wanted


def test_rule_9_budgets_of_length_are_exact(select: Runner) -> None:
    # 0.1 * 30 pages is 3 in float64 and more than 3 in fp32, where the ceiling would be 4.
    for budget, wanted in {"ceil(0.1 * ctx.pages)": 3, "floor(0.7 * 10)": 7, "ctx.length // 40": 2}.items():
        pages = chosen(select, f"topk(score, {budget})", *range(29))
        assert len(pages) == wanted + 1, budget


def test_rule_9_a_page_divides_the_cache_block_or_is_a_multiple_of_it() -> None:
    executor = TorchExecutor(parse(program("topk(score, 1)", **PLAIN)).bind(), static())
    _, keys, values = context(1, 2, 3)
    for block in (1, 2, 4, 8, 12):
        executor.new_state(PagedKV.from_dense(keys, values, block))
    with pytest.raises(VortexError, match=r"4 tokens.*blocks of 3"):
        executor.new_state(PagedKV.from_dense(keys, values, 3))


def test_rule_11_density_counts_tokens_read_own_forced_and_chosen() -> None:
    step = run(
        parse(program("topk(score, 1) | first(1)", **PLAIN)).bind(), static(kv_heads=2), *context(9, 5, 7, 1, heads=2)
    )
    assert step.lists == [[[(0, 4)], [(0, 4)]]] and step.density == 5 / 17
    text = program("topk(score, 1)", **PLAIN)
    q, keys, values = context(1, 2, 3, tokens=2)
    executor = TorchExecutor(parse(text).bind(), static())
    lists = run(parse(text).bind(), static(), q, keys, values).lists
    cache = PagedKV.from_dense(keys, values, PAGE)
    assert page_lists(lists).tokens(cache.lengths, PAGE).tolist() == [[6]]
    assert executor.program.page_size == PAGE


def test_rule_12_no_executor_goes_dense_by_itself(select: Runner) -> None:
    for pages in (1, 2, 30):
        assert chosen(select, "topk(score, 0)", *range(pages)) == (pages,)
