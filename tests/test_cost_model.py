"""The cost model: bytes from first principles, and a prediction that orders programs as it must."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from vortexlab import search_spaces
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.dsl.parser import parse
from vortexlab.kernels.cost import Prediction, Stage, predict
from vortexlab.kernels.cost_prefill import predict_prefill
from vortexlab.kernels.devices import DEVICES, get_device

STATIC = Static(kv_heads=8, group=4, head_dim=128, scale=128**-0.5)


def seed(name: str, **knobs: int | float) -> Program:
    return search_spaces.load(name).bind(knobs)


def program(body: str, page: int = 16) -> Program:
    return parse(f"from vortexlab.dsl import *\n\n\n@program(page={page})\nclass P:\n{body}").bind()


SCORED = """
    def summarize(k, v):
        return dict(m=k.mean(token){more})

    def score(q, s):
        return dot(q, s.m, channel){reduced}

    def select(score):
        return topk(score, 8)
"""


def stage(prediction: Prediction, name: str) -> float:
    return next(s for s in prediction.stages if s.name == name).read


def test_bytes_follow_from_the_geometry() -> None:
    context, batch, page, budget = 32768, 4, 16, 61
    found = predict(seed("quest", budget=budget), STATIC, context, batch, "h200")
    rows = batch * 8
    assert found.dense.read == pytest.approx(2 * rows * context * 128 * 2, rel=0.02)  # and the parts of a split
    assert stage(found, "attend") == 2 * rows * (budget + 3) * page * 128 * 2
    assert stage(found, "score") == rows * (context // page - 1) * 2 * 128 * 2  # lo and hi
    assert stage(found, "summary") == rows * 128 * 2  # keys alone, one page in 16 steps
    assert found.pages == budget + 3 and not found.exact_pages
    assert found.density == (budget + 3) * page / context


def test_the_own_page_counts_its_live_tokens() -> None:
    found = predict(seed("quest", budget=4), STATIC, 1601, 1, "h200")
    assert stage(found, "attend") == 2 * 8 * (6 * 16 + 1) * 128 * 2


def test_the_ideal_is_the_known_formula() -> None:
    found = predict(seed("quest", budget=200), STATIC, 65536, 8, "h200")
    assert found.ideal == pytest.approx(1 / (found.density + 2 / (2 * 16)), rel=0.01)
    centroid = predict(seed("centroid", budget=200), STATIC, 65536, 8, "h200")
    assert centroid.ideal == pytest.approx(1 / (centroid.density + 1 / (2 * 16)), rel=0.01)


@pytest.mark.parametrize(("context", "batch", "measured"), [
    (4096, 1, 12), (8192, 1, 16), (32768, 1, 42), (131072, 1, 132), (8192, 8, 72), (32768, 32, 943), (131072, 64, 7506),
])  # fmt: skip
def test_dense_agrees_with_the_best_public_kernel(context: int, batch: int, measured: float) -> None:
    """us a layer of FlashInfer's paged decode on one H200, 32 query and 8 KV heads of 128, bf16."""
    predicted = predict(seed("dense"), STATIC, context, batch, "h200").dense.seconds * 1e6
    assert 0.75 < predicted / measured < 1.25


def test_summaries_cost_what_their_precision_says() -> None:
    plain = program(SCORED.format(more="", reduced=".max(head)"))
    sizes = {
        kind: stage(predict(replace(plain, summary_dtype=kind), STATIC, 4096, 1, "h200"), "score")
        for kind in ("kv", "bf16", "fp32")
    }
    assert sizes["kv"] == sizes["bf16"] and sizes["fp32"] == 2 * sizes["bf16"]
    wide = predict(plain, STATIC, 4096, 1, "h200", dtype="fp32")
    assert stage(wide, "score") == sizes["fp32"]


def test_dead_summaries_cost_nothing() -> None:
    lean = predict(program(SCORED.format(more="", reduced=".max(head)")), STATIC, 4096, 2, "h200")
    dead = predict(program(SCORED.format(more=", dead=v.max(token)", reduced=".max(head)")), STATIC, 4096, 2, "h200")
    assert lean.stages == dead.stages


def test_static_patterns_score_nothing() -> None:
    found = predict(seed("sink_window"), STATIC, 8192, 2, "h200")
    assert [s.seconds for s in found.stages if s.name in ("summary", "score")] == [0, 0]


def test_contractions_are_counted_as_products() -> None:
    found = predict(seed("centroid", budget=8), STATIC, 16001, 2, "h200")
    score = next(s for s in found.stages if s.name == "score")
    assert score.flops == 2 * 2 * 8 * 1000 * 4 * 128
    quest = predict(seed("quest", budget=8), STATIC, 16001, 2, "h200")
    assert next(s for s in quest.stages if s.name == "score").flops == 2 * score.flops


@pytest.mark.parametrize("device", DEVICES)
def test_more_work_takes_more_time(device: str) -> None:
    def seconds(budget: int, context: int, batch: int) -> float:
        return predict(seed("quest", budget=budget), STATIC, context, batch, device).seconds

    base = seconds(64, 16384, 4)
    assert seconds(128, 16384, 4) > base and seconds(64, 32768, 4) > base and seconds(64, 16384, 8) > base


@pytest.mark.parametrize("device", DEVICES)
def test_a_dense_program_is_no_faster_than_dense(device: str) -> None:
    found = predict(seed("dense"), STATIC, 16384, 4, device)
    assert found.density == 1 and 0.5 < found.speedup_over_dense <= 1


def test_long_batched_contexts_gain_and_short_single_ones_do_not() -> None:
    program = seed("quest", budget=128)
    assert predict(program, STATIC, 131072, 16, "h200").speedup_over_dense > 4
    assert predict(program, STATIC, 4096, 1, "h200").speedup_over_dense < 1


def test_recorded_live_pages_replace_the_bound() -> None:
    bound = predict(seed("top_p"), STATIC, 16384, 4, "h200")
    live = predict(seed("top_p"), STATIC, 16384, 4, "h200", live_pages=20.5)
    assert bound.pages > live.pages == 20.5 and live.exact_pages and live.seconds < bound.seconds
    assert predict(seed("top_p"), STATIC, 64, 4, "h200", live_pages=1e9).density == 1


def test_lists_of_query_heads_may_not_overlap() -> None:
    assert predict(program(SCORED.format(more="", reduced="")), STATIC, 16384, 1, "h200").pages == 4 * 9


def test_predictions_are_repeatable_and_plain_json() -> None:
    def text() -> str:
        return json.dumps(
            predict(seed("value_energy"), STATIC, 30000, 3, "cpu", dtype="fp32").to_json(), sort_keys=True
        )

    data = json.loads(text())
    assert text() == text() and data["kind"] == "predicted" and data["speedup_over_dense"] > 1
    assert data["seconds"] == pytest.approx(sum(s["seconds"] for s in data["stages"]))


def test_the_first_token_has_a_cost_too() -> None:
    found = predict(seed("quest"), STATIC, 1, 1, "cpu", dtype="fp32")
    assert found.density == 1 and found.pages == 1 and found.seconds > 0


def test_every_device_says_where_its_rates_come_from() -> None:
    assert {"h200", "h100", "a100", "mi300x", "cpu"} <= set(DEVICES)
    for device in DEVICES.values():
        assert device.source and device.evidence in ("measured", "datasheet")
    assert get_device("a100").evidence == "datasheet"


@pytest.mark.parametrize(("arguments", "message"), [
    ((4096, 1, "tpu"), "unknown device 'tpu'; the cost model knows h200"),
    ((0, 1, "cpu"), "at least one token and one request"),
])  # fmt: skip
def test_bad_input_is_one_clear_line(arguments: tuple[int, int, str], message: str) -> None:
    with pytest.raises(VortexError, match=message):
        predict(seed("quest"), STATIC, *arguments)
    with pytest.raises(VortexError, match="unknown cache precision 'fp8'"):
        predict(seed("quest"), STATIC, 64, 1, "cpu", dtype="fp8")
    with pytest.raises(VortexError, match="still has knobs"):
        predict(search_spaces.load("quest"), STATIC, 64, 1, "cpu")


# memory, reuse, output, lower precision, latent keys, prefill


CENTRE = "dot(q, s.c, channel).max(head)"


def written(
    select: str, more: str = "", declared: str = "", options: str = "", score: str = CENTRE
) -> Program:
    m = ", m" if "m." in score else ""
    return parse(f"""from vortexlab.dsl import *


@program(page=16{options})
class P:
    {declared}

    def summarize(k, v): return dict(c=k.mean(token), v=v.mean(token))

    def score(q, s{m}): return {score}

    def select(score, ctx): return {select}
{more}""").bind()


BIG = Static(kv_heads=8, group=4, head_dim=128, scale=0.1, layer=1, layers=4)


def named(prediction: Prediction, name: str) -> Stage:
    return next(item for item in prediction.stages if item.name == name)


def test_a_kept_set_costs_its_share_of_steps() -> None:
    every = predict(written("topk(score, 64)"), BIG, 32768, 8, "h200")
    eighth = predict(written("reuse(topk(score, 64), every=8)"), BIG, 32768, 8, "h200")
    assert named(eighth, "score").read == pytest.approx(named(every, "score").read / 8)
    assert named(eighth, "score").flops == pytest.approx(named(every, "score").flops / 8)
    above = predict(written("reuse(topk(score, 64), layers=ctx.layer % 2 == 0)"), BIG, 32768, 8, "h200")
    assert named(above, "score").read == named(above, "score").flops == 0


def test_memory_is_read_and_written() -> None:
    plain = written("topk(score, 64)")
    summed = written(
        "topk(score, 64)", "    def remember(score): return dict(mass=score)\n", "mass = memory.step(page, every=4)",
        score="dot(q, s.c, channel).max(head) + m.mass",
    )  # fmt: skip
    found = named(predict(summed, BIG, 16 * 1024, 2, "h200"), "memory")
    count = 2 * 8 * 1023
    assert (found.read, found.written) == (4 * count, count)
    assert all(item.name != "memory" for item in predict(plain, BIG, 16 * 1024, 2, "h200").stages)


def test_entries_and_several_attentions_are_counted() -> None:
    plain = predict(written("topk(score, 64)"), BIG, 16 * 1024, 1, "h200")
    output = "attention(pages, keys=s.c, values=s.v, among=~pages) + attention(last(2))"
    more = f"    def attend(s, pages): return {output}\n"
    both = predict(written("topk(score, 64)", more), BIG, 16 * 1024, 1, "h200")
    assert named(both, "entries").read == 4 * 8 * 1023 * 256
    assert named(both, "entries").flops == 2 * 8 * 4 * 1023 * 256
    window = (2 * 16 + 16) * 8 * 2 * 128 * 2  # the bound of last(2) is two pages and the own one
    assert named(both, "attend").read == pytest.approx(named(plain, "attend").read + window)


def test_fp8_halves_bytes_and_counts_scales() -> None:
    text = dict(select="topk(score, 64)")
    wide, narrow = (predict(written(**text), BIG, 16 * 1024, 1, "h200", dtype=d) for d in ("bf16", "fp8_e4m3"))
    assert named(narrow, "attend").read == named(wide, "attend").read / 2
    assert named(narrow, "score").read == 8 * 1023 * (128 + 4)
    stored = predict(written("topk(score, 64)", options=', summaries="fp8_e5m2"'), BIG, 16 * 1024, 1, "h200")
    assert named(stored, "score").read == 8 * 1023 * (128 + 4)


def test_latent_keys_are_read_once() -> None:
    latent = Static(kv_heads=1, group=16, head_dim=576, scale=0.1, latent=512)
    text = written("topk(score, 64)").bind()
    found = predict(text, latent, 16 * 1024, 1, "h200", live_pages=64)
    assert named(found, "attend").read == 64 * 16 * 576 * 2
    assert named(found, "attend").flops == 2 * 16 * 64 * 16 * (576 + 512)


def test_prefill_gains_from_few_pages_and_is_dense_without_pool() -> None:
    pooled = "    def pool(q): return q.mean(query)\n"
    sparse = predict_prefill(written("topk(score, 32)", pooled, options=", block=64"), BIG, 65536, 1, "h200")
    assert sparse.phase == "prefill" and 0 < sparse.density < 0.1 and sparse.speedup_over_dense > 3
    dense = predict_prefill(written("topk(score, 32)"), BIG, 65536, 1, "h200")
    assert dense.speedup_over_dense == 1 and dense.density == 1
    assert dense.dense.flops == pytest.approx(4 * 32 * 128 * 65536**2 / 2)
    every = predict_prefill(written("everything()", pooled, options=", block=64"), BIG, 8192, 1, "h200")
    assert every.density == pytest.approx(1, rel=0.02)


def test_a_program_has_its_own_cache_and_dense_attention_the_models() -> None:
    text = written("topk(score, 64)")
    plain, lean = (predict(replace(text, kv_dtype=kv), BIG, 16 * 1024, 1, "h200") for kv in ("auto", "fp8_e4m3"))
    assert (lean.dtype, lean.dense_dtype, plain.dtype) == ("fp8_e4m3", "bf16", "bf16")
    assert lean.dense == plain.dense and 2 * named(lean, "attend").read == named(plain, "attend").read
    whole = predict(text, BIG, 16 * 1024, 1, "h200", dtype="fp8_e4m3").dense
    assert whole.read == pytest.approx(plain.dense.read / 2, rel=0.02), "all but what parts are combined from"
    prompt = seed("bigbird_prefill")
    prompts = [predict_prefill(replace(prompt, kv_dtype=kv), BIG, 4096, 1, "h200") for kv in ("auto", "fp8_e4m3")]
    assert prompts[0].dense == prompts[1].dense
    assert 2 * named(prompts[1], "attend").read == named(prompts[0], "attend").read
