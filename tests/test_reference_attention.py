"""Attention output, prefill and latent keys against masked softmax over whole tensors."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vortexlab.dsl import parse
from vortexlab.dsl.bounds import page_bound
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Static
from vortexlab.dsl.parameters import Parameters
from vortexlab.dsl.reference import run
from vortexlab.dsl.reference_prefill import prefill, prefill_layers

PAGE, WIDTH, GROUP = 4, 8, 3
STATIC = Static(kv_heads=2, group=GROUP, head_dim=WIDTH, scale=0.4, layers=2)
HEAD = f'''@program(page={PAGE}, block=8, summaries="fp32")
class P:
    gate = param(branch=3, head, channel, per_layer=False, per_kv_head=True)
    def summarize(k, v):
        return dict(c=k.mean(token), v=v.mean(token), k2=k.split(token, half=2).mean(token),
                    v2=v.split(token, half=2).mean(token))
'''.replace("param(branch=3, head, channel,", "param(head, channel, branch=3,")


def program(attend: str, select: str = "topk(score, 2) | first(1)", pool: str = "") -> str:
    text = f"{HEAD}    def pool(q, ctx):\n        return {pool}\n" if pool else HEAD.replace(", block=8", "")
    text += "    def score(q, s, ctx):\n        return dot(q, s.c, channel).max(head)\n"
    text += f"    def select(score, ctx):\n        return {select}\n"
    return text + (f"    def attend(q, s, score, pages, ctx):\n        return {attend}\n" if attend else "")


def context(tokens: int = 27, seed: int = 3, static: Static = STATIC) -> tuple[Tensor, Tensor, Tensor]:
    """q [heads, tokens, channel], k, v [KV heads, tokens, channel], float64."""
    made = torch.Generator().manual_seed(seed)
    heads = static.kv_heads * static.group
    shapes = (heads, static.head_dim), (static.kv_heads, static.head_dim), (static.kv_heads, static.value_dim)
    q, k, v = (torch.randn(n, tokens, width, generator=made, dtype=torch.float64) for n, width in shapes)
    return q, k, v


def softmax(logits: Tensor, values: Tensor) -> Tensor:
    """[head, place] logits that may be -inf, [place, channel] values."""
    return torch.softmax(logits, 1).nan_to_num(0.0) @ values


def token_mask(pages: set[int] | list[int], tokens: int) -> Tensor:
    """0 at the tokens of the pages, -inf elsewhere."""
    inside = torch.isin(torch.arange(tokens) // PAGE, torch.tensor(sorted(pages)))
    return torch.where(inside, 0.0, -math.inf).double()


def best(q: Tensor, k: Tensor, own: int, count: int) -> list[int]:
    """The `count` best candidate pages by the largest mean-key product over the group."""
    score = (q @ k[: own * PAGE].view(own, PAGE, k.shape[1]).mean(1).T).amax(0)
    return score.argsort(descending=True, stable=True)[:count].tolist()


Answer = tuple[Tensor, Tensor, Tensor, Tensor, list[int], int]


def outputs(text: str, parameters: Parameters | None = None) -> list[Answer]:
    """For each KV head: the reference's output [head, channel], q, k, v, the selected candidates and the own page."""
    q, k, v = context()
    step = run(parse(text).bind(parameters=parameters), STATIC, q[None, :, -1], [k], [v])
    own, result = (k.shape[1] - 1) // PAGE, []
    for kv in range(2):
        heads = slice(kv * GROUP, (kv + 1) * GROUP)
        found = [0, *best(q[heads, -1], k[kv], own, 2)]
        result.append((step.output[0, heads], q[heads, -1], k[kv], v[kv], found, own))
    return result


def test_attention_alone_is_plain_attention() -> None:
    for found, q, k, v, pages, own in outputs(program("attention(pages)")):
        assert torch.allclose(found, softmax(0.4 * q @ k.T + token_mask({*pages, own}, 27), v))


def test_log_weights_are_those_of_pages_and_0_for_the_own_page() -> None:
    for found, q, k, v, pages, own in outputs(program("attention(pages, log_weight=index(page) * 0.5 + 1)")):
        weight = (torch.arange(27) // PAGE) * 0.5 + 1
        weight[own * PAGE :] = 0
        assert torch.allclose(found, softmax(0.4 * q @ k.T + weight + token_mask({*pages, own}, 27), v))


def test_log_weights_per_query_head() -> None:
    text = program("attention(pages, log_weight=dot(q, s.c, channel))")
    for found, q, k, v, pages, own in outputs(text):
        weight = q @ k[: own * PAGE].view(own, PAGE, WIDTH).mean(1).T
        whole = torch.cat([weight.repeat_interleave(PAGE, 1), torch.zeros(GROUP, 27 - own * PAGE)], 1)
        assert torch.allclose(found, softmax(0.4 * q @ k.T + whole + token_mask({*pages, own}, 27), v))


def test_a_page_of_weight_minus_infinity_is_not_read() -> None:
    text = program("attention(pages, log_weight=where(index(page) < 1, log(0.0 * float(index(page))), 0.0))")
    for found, q, k, v, pages, own in outputs(text):
        assert torch.allclose(found, softmax(0.4 * q @ k.T + token_mask({*pages, own} - {0}, 27), v))


def test_summary_entries_alone() -> None:
    for found, q, k, v, _, own in outputs(program("attention(keys=s.c, values=s.v, log_weight=log(float(ctx.page)))")):
        keys, values = (x[: own * PAGE].view(own, PAGE, WIDTH).mean(1) for x in (k, v))
        assert torch.allclose(found, softmax(0.4 * q @ keys.T, values))


def test_entries_of_parts_among_some_pages_and_none_at_all() -> None:
    for found, q, k, v, pages, own in outputs(program("attention(keys=s.k2, values=s.v2, among=everything() - pages)")):
        keys, values = (x[: own * PAGE].view(own, 2, 2, WIDTH).mean(2) for x in (k, v))
        rest = [p for p in range(own) if p not in pages]
        assert torch.allclose(found, softmax(0.4 * q @ keys[rest].flatten(0, 1).T, values[rest].flatten(0, 1)))
    for found, *_ in outputs(program("attention(keys=s.c, values=s.v, among=last(1))")):
        assert torch.equal(found, torch.zeros(GROUP, WIDTH, dtype=torch.float64))


def test_one_softmax_over_tokens_and_entries() -> None:
    text = program("attention(pages, keys=s.c, values=s.v, among=~pages, log_weight=0.5 - index(page) * 0.25,"
                   " entry_log_weight=log(4.0) + dot(q, s.c, channel))")  # fmt: skip
    for found, q, k, v, pages, own in outputs(text):
        keys, values = (x[: own * PAGE].view(own, PAGE, WIDTH).mean(1) for x in (k, v))
        rest = [p for p in range(own) if p not in pages]
        weight = 0.5 - (torch.arange(27) // PAGE) * 0.25
        weight[own * PAGE :] = 0
        entries = 0.4 * q @ keys.T + math.log(4) + q @ keys.T
        logits = torch.cat([0.4 * q @ k.T + weight + token_mask({*pages, own}, 27), entries[:, rest]], 1)
        assert torch.allclose(found, softmax(logits, torch.cat([v, values[rest]])))


def test_gated_sum_of_three_attentions_and_the_union_of_what_they_read(tmp_path: Path) -> None:
    gate = torch.randn(2, 3, GROUP, WIDTH, generator=torch.Generator().manual_seed(1))
    # Stored order of the parameter's axes: head, branch, channel.
    save_file({"gate": gate.transpose(1, 2).contiguous()}, tmp_path / "p.safetensors")
    gates = "sigmoid(dot(q, gate, channel))"
    text = program(
        f"({gates}.slice(branch, 0, 1).sum(branch) * attention(keys=s.c, values=s.v)"
        f" + {gates}.slice(branch, 1, 2).sum(branch) * attention(pages)"
        f" + {gates}.slice(branch, 2).sum(branch) * attention(last(3)))"
    )
    parameters = Parameters.open(tmp_path / "p.safetensors")
    for kv, (found, q, k, v, pages, own) in enumerate(outputs(text, parameters)):
        keys, values = (x[: own * PAGE].view(own, PAGE, WIDTH).mean(1) for x in (k, v))
        branches = [
            softmax(0.4 * q @ keys.T, values), softmax(0.4 * q @ k.T + token_mask({*pages, own}, 27), v),
            softmax(0.4 * q @ k.T + token_mask({own - 2, own - 1, own}, 27), v),
        ]  # fmt: skip
        weights = [torch.sigmoid((q * gate[kv, branch].double()).sum(1, keepdim=True)) for branch in range(3)]
        wanted = sum(weight * branch for weight, branch in zip(weights, branches, strict=True))
        assert torch.allclose(found, wanted)  # type: ignore[arg-type]
    q, k, v = context()
    bound = parse(text).bind(parameters=parameters)
    step = run(bound, STATIC, q[None, :, -1], [k], [v])
    for kv in range(2):
        pages = {0, *best(q[kv * GROUP : (kv + 1) * GROUP, -1], k[kv], 6, 2), 4, 5, 6}
        assert step.lists[0][kv] == [tuple(sorted(pages))]
    assert page_bound(bound, STATIC, 4096) == 1 + 2 + 3


# ---- prefill


@pytest.mark.parametrize("pool", ["q.mean(query)", "q.slice(query, -3).max(query)"])
def test_prefill_selects_per_block_with_the_pooled_query(pool: str) -> None:
    q, k, v = context(27)
    found = prefill(parse(program("", pool=pool)).bind(), STATIC, q, k, v)
    assert [(block.start, block.stop) for block in found.blocks] == [(0, 8), (8, 16), (16, 24), (24, 27)]
    pairs = torch.zeros(2)
    for kv in range(2):
        heads = slice(kv * GROUP, (kv + 1) * GROUP)
        for block in found.blocks:
            queries = q[heads, block.start : block.stop]
            pooled = queries.mean(1) if "mean" in pool else queries[:, -3:].amax(1)
            own = block.start // PAGE
            touched = range(own, (block.stop - 1) // PAGE + 1)
            pages = {*best(pooled, k[kv], own, 2), 0, *touched}
            assert block.lists[kv] == [tuple(sorted(pages))]
            for t in range(block.start, block.stop):
                causal = torch.where(torch.arange(27) <= t, 0.0, -math.inf)
                mask = token_mask(pages, 27) + causal
                wanted = softmax(0.4 * q[heads, t] @ k[kv].T + mask, v[kv])
                assert torch.allclose(found.output[heads, t], wanted)
                pairs[kv] += int((mask == 0).sum())
    assert found.density == pytest.approx(float(pairs.mean()) / (27 * 28 / 2))


def test_prefill_attends_with_each_querys_own_numbers_and_the_blocks_sets() -> None:
    attend = ("attention(pages, keys=s.c, values=s.v, among=~pages, log_weight=score, "
              "entry_log_weight=dot(q, s.c, channel))")  # fmt: skip
    q, k, v = context(19)
    found = prefill(parse(program(attend, pool="q.mean(query)")).bind(), STATIC, q, k, v)
    for kv in range(2):
        heads = slice(kv * GROUP, (kv + 1) * GROUP)
        for block in found.blocks:
            own = block.start // PAGE
            chosen = {*best(q[heads, block.start : block.stop].mean(1), k[kv], own, 2), *([0] if own else [])}
            keys, values = (x[: own * PAGE].view(own, PAGE, WIDTH).mean(1) for x in (k[kv], v[kv]))
            rest = [p for p in range(own) if p not in chosen]
            for t in range(block.start, block.stop):
                mine = q[heads, t] @ keys.T
                weight = torch.zeros(19, dtype=torch.float64)
                weight[: own * PAGE] = (mine.amax(0) if own else mine.sum(0)).repeat_interleave(PAGE)
                pages = {*chosen, *range(own, (block.stop - 1) // PAGE + 1)}
                mask = token_mask(pages, 19) + torch.where(torch.arange(19) <= t, 0.0, -math.inf)
                logits = torch.cat([0.4 * q[heads, t] @ k[kv].T + weight + mask, (1.4 * mine)[:, rest]], 1)
                assert torch.allclose(found.output[heads, t], softmax(logits, torch.cat([v[kv], values[rest]])))


def test_prefill_without_pool_is_dense_and_blocks_see_their_phase() -> None:
    q, k, v = context(11)
    dense = prefill(parse(program("")).bind(), STATIC, q, k, v)
    assert dense.blocks == [] and dense.density == 1
    mask = torch.where(torch.arange(11)[None] <= torch.arange(11)[:, None], 0.0, -math.inf)
    for head in range(6):
        wanted = softmax(0.4 * q[head] @ k[head // GROUP].T + mask, v[head // GROUP])
        assert torch.allclose(dense.output[head], wanted)
    text = program("", "where(ctx.prefill, first(ctx.position // 8), last(1))", pool="q.mean(query)")
    found = prefill(parse(text).bind(), STATIC, *context(27))
    assert [block.lists[0][0] for block in found.blocks] == [(0, 1), (0, 2, 3), (0, 1, 4, 5), (0, 1, 2, 6)]
    q, k, v = context(27)
    assert run(parse(text).bind(), STATIC, q[None, :, -1], [k], [v]).lists[0][0] == [(6,)]


def test_prefill_is_causal_and_blocks_smaller_than_pages_work() -> None:
    text = program("attention(pages, log_weight=score)", pool="q.mean(query)")
    for block in (2, 4, 16):
        bound = parse(text.replace("block=8", f"block={block}")).bind()
        q, k, v = context(27)
        whole = prefill(bound, STATIC, q, k, v)
        for cut in (block, 3 * block if block < 16 else 16):
            part = prefill(bound, STATIC, q[:, :cut], k[:, :cut], v[:, :cut])
            assert torch.equal(part.output, whole.output[:, :cut])
    with pytest.raises(VortexError, match="block of 6 queries"):
        parse(text.replace("block=8", "block=knob.choice(6, 8, default=8)")).bind({"block": 6})


def test_layers_hand_up_block_by_block_and_steps_have_not_begun() -> None:
    text = f"""@program(page={PAGE}, block=8)
class P:
    mass = memory.layer(page, init=1.0)
    age = memory.step(page, init=3.0)
    def pool(q): return q.mean(query)
    def score(m): return m.mass * 2 + m.age
    def select(score, ctx): return reuse(above(score, 6), every=5) | reuse(first(1), layers=ctx.layer == 0)
    def remember(score): return dict(mass=score, age=score)
"""
    q, k, v = context(27)
    found = prefill_layers(parse(text).bind(), STATIC, [q, q], [k, k], [v, v])
    assert [layer.blocks[3].lists[0][0] for layer in found] == [(0, 6), (0, 1, 2, 3, 4, 5, 6)]
    assert [float(layer.carries[1].memories["mass", 0][1].tensor) for layer in found] == [13.0, 13.0]


# ---- MLA


@pytest.mark.parametrize("aware", [True, False])
def test_latent_keys_score_with_and_without_their_rotary_part(aware: bool) -> None:
    static = Static(kv_heads=1, group=4, head_dim=24, scale=0.3, latent=16)
    part = "" if aware else ".slice(channel, 0, ctx.latent)"
    text = f"""@program(page={PAGE}, summaries="fp32")
class P:
    def summarize(k, v, ctx):
        return dict(c=k.mean(token){part}, e=v.norm(channel).max(token))
    def score(q, s, ctx):
        return dot(q{part}, s.c, channel).max(head) + s.e * 0
    def select(score):
        return topk(score, 2)
"""
    q, k, _ = context(30, static=static)
    v = k[..., :16]
    step = run(parse(text).bind(), static, q[None, :, -1], [k], [v])
    width = 24 if aware else 16
    pages = {*best(q[:, -1, :width], k[0, :, :width], 7, 2), 7}
    assert step.lists[0][0] == [tuple(sorted(pages))] and step.output.shape == (1, 4, 16)
    assert torch.allclose(step.output[0], softmax(0.3 * q[:, -1] @ k[0].T + token_mask(pages, 30), v[0]))
    attend = "    def attend(pages): return attention(pages)\n"
    assert torch.allclose(run(parse(text + attend).bind(), static, q[None, :, -1], [k], [v]).output, step.output)
    with pytest.raises(VortexError, match="values of 16 channels"):
        run(parse(text).bind(), static, q[None, :, -1], [k], [k])
