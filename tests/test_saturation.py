"""What `vortex check` counts: planted numbers that saturate, that vanish, and that do neither."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vortexlab import dsl, saturation
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.dsl.saturation import Count, count, is_narrow, measure
from vortexlab.evaluator.config import REFERENCE_MODEL
from vortexlab.evaluator.geometries import find_geometry
from vortexlab.evaluator.models import Prefill, load_model
from vortexlab.evaluator.reference.recorded import TASK, TOKENS, recorded
from vortexlab.evaluator.tasks import make_samples
from vortexlab.search_spaces import library

STATIC = Static(1, 2, 8, 0.25)
TEXT = """@program(page=4{options})
class Sums:
    def summarize(k):
        return dict(total=k.sum(token), dead=k.max(token))
    def score(q, s):
        return (dot(q, s.total, channel) * {factor}).to("{cast}").max(head)
    def select(score):
        return topk(score, 2)
"""


def _program(options: str = "", factor: float = 1.0, cast: str = "fp32") -> Program:
    found, _ = dsl.check(TEXT.format(options=options, factor=factor, cast=cast))
    assert found is not None
    return found.bind()


def _ones(*shape: int) -> Tensor:
    return torch.ones(shape)


@pytest.mark.parametrize(
    ("dtype", "numbers", "over", "under", "not_finite"),
    [
        ("fp8_e4m3", [448.0, -463.0, 464.0, -1e9, 1.0], 2, 0, 0),
        ("fp8_e4m3", [2.0**-9, 2.0**-10, -(2.0**-11), 0.0], 0, 2, 0),
        ("fp8_e5m2", [57344.0, 61439.0, 61440.0, 2.0**-18, 1e-9], 1, 2, 0),
        ("fp16", [65504.0, 65519.0, -65520.0, 1e-9], 1, 1, 0),
        ("fp8_e4m3", [float("inf"), float("nan"), 0.5], 0, 0, 2),
    ],
)
def test_numbers_at_the_edge(dtype: str, numbers: list[float], over: int, under: int, not_finite: int) -> None:
    """What rounding makes of a number decides: 463 becomes 448 as any number becomes its neighbour, 464 would not."""
    found = count(torch.tensor(numbers), Count("k", dtype, None))
    assert (found.numbers, found.over, found.under, found.not_finite) == (len(numbers), over, under, not_finite)


def test_planted_keys_saturate_and_values_do_not() -> None:
    k, v = _ones(1, 17, 8), _ones(1, 17, 8)
    k[0, :5, 2], v[0, 0, 0] = 1000.0, 1e-6
    keys, values = measure(replace(_program(), kv_dtype="auto"), STATIC, _ones(2, 8), k, v, "fp8_e4m3")[:2]
    assert (keys.what, keys.numbers, keys.over, keys.under) == ("k", 136, 5, 0)
    assert (values.what, values.over, values.under) == ("v", 0, 1)


def test_a_scaled_summary_saturates_only_without_a_scale() -> None:
    """Rule 10: whatever the size of the numbers, the largest of a page is the largest of the format; small ones beside
    it vanish, and an infinite one leaves the rest without a scale."""
    program = _program(', summaries="fp8_e4m3"')
    huge = 1e6 * _ones(1, 17, 8)
    (total,) = measure(program, STATIC, _ones(2, 8), huge, huge, "bf16")
    assert (total.what, total.dtype, total.numbers) == ("summary total", "fp8_e4m3", 4 * 8)
    assert (total.over, total.under, total.not_finite) == (0, 0, 0)
    mixed = huge.clone()
    mixed[..., 1:] = 1.0
    (total,) = measure(program, STATIC, _ones(2, 8), mixed, mixed, "fp32")
    assert (total.over, total.under) == (0, 4 * 7)
    endless = huge.clone()
    endless[0, 0, 0] = float("inf")
    (total,) = measure(program, STATIC, _ones(2, 8), endless, endless, "fp32")
    assert (total.over, total.not_finite) == (7, 1), "the others of that page meet a scale of 1"


def test_casts_are_counted_with_their_line() -> None:
    k = _ones(1, 17, 8)
    for factor, over in ((1.0, 0), (100.0, 8)):  # 4 pages, 2 heads; sums of 4 ones, dot of 8 channels: 32
        (cast,) = measure(_program(factor=factor, cast="fp8_e4m3"), STATIC, _ones(2, 8), k, k, "bf16")
        assert (cast.what, cast.dtype, cast.line, cast.numbers, cast.over) == ("cast", "fp8_e4m3", 6, 8, over)
    (cast,) = measure(_program(factor=3000.0, cast="fp16"), STATIC, _ones(2, 8), k, k, "bf16")
    assert (cast.dtype, cast.over) == ("fp16", 8), "96,000 is infinite in fp16"


def test_summaries_of_an_fp8_cache_are_kept_like_it() -> None:
    k = _ones(1, 17, 8)
    names = [item.what for item in measure(_program(), STATIC, _ones(2, 8), k, k, "fp8_e5m2")]
    assert names == ["k", "v", "summary total"], "a summary that nothing reads is not stored"


def test_wide_programs_have_nothing_to_count() -> None:
    geometry = find_geometry("qwen3-1.7b")
    assert not is_narrow(_program(), "bf16") and saturation.report(_program(), geometry, "bf16") is None
    assert is_narrow(_program(), "fp16") and is_narrow(_program(cast="fp8_e5m2"), "bf16")


def test_a_report_is_on_named_numbers_and_repeats() -> None:
    geometry, program = find_geometry("qwen3-1.7b"), _program(factor=30.0, cast="fp8_e4m3")
    found = saturation.report(program, geometry, "fp8_e4m3")
    assert found is not None and found == saturation.report(program, geometry, "fp8_e4m3")
    assert list(found["inputs"]) == ["normal", "outliers", "reference model"] and found["left_out"] == []
    share = {(row["input"], row["what"]): row["over"] for row in found["rows"]}
    assert share["normal", "k"] == share["outliers", "k"] == share["reference model", "k"] == 0
    assert 0 < share["normal", "cast"] < share["outliers", "cast"] <= 1
    assert all(row["line"] == (6 if row["what"] == "cast" else None) for row in found["rows"])


def test_what_cannot_be_counted_is_named() -> None:
    geometry = find_geometry("qwen3-8b")
    picky = dsl.parse(
        '@program(page=4, summaries="fp8_e4m3")\nclass Picky:\n    def summarize(k):\n'
        "        return dict(one=k.slice(channel, 64, 128).sum(token))\n"
        "    def score(q, s):\n        return s.one.sum(channel)\n"
        "    def select(score):\n        return topk(score, 2)\n"
    ).bind()
    found = saturation.report(picky, geometry, "bf16")
    assert found is not None and list(found["inputs"]) == ["normal", "outliers"]
    assert [text.split(":")[0] for text in found["left_out"]] == ["reference model"]
    learned = library.load("seer_decode").bind()
    bare = saturation.report(learned, geometry, "fp8_e4m3")
    assert bare is not None and bare["rows"] == [] and len(bare["left_out"]) == 3
    assert all("parameters" in text for text in bare["left_out"])


def test_pooled_casts_run_in_prefill_alone() -> None:
    pooled = dsl.parse(
        '@program(page=4, block=8)\nclass Pooled:\n    def summarize(k):\n        return dict(c=k.mean(token))\n'
        '    def pool(q):\n        return q.mean(query).to("fp8_e4m3")\n'
        "    def score(q, s):\n        return dot(q, s.c, channel).max(head)\n"
        "    def select(score):\n        return topk(score, 2)\n"
    ).bind()
    found = saturation.report(pooled, find_geometry("qwen3-1.7b"), "fp8_e4m3")
    assert found is not None and found["left_out"] == ["1 cast of pool, which run in sparse prefill alone"]
    assert {row["what"] for row in found["rows"]} == {"k", "v", "summary c"}


class _Queries(Prefill):
    """Keeps the newest query of every layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.newest: dict[int, Tensor] = {}

    def attend(self, module: torch.nn.Module, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        self.newest[layer] = q[0, :, -1]
        return super().attend(module, layer, q, k, v, scale)


def test_the_recorded_numbers_are_those_of_the_shipped_model() -> None:
    model = load_model(str(REFERENCE_MODEL))
    context = torch.tensor(make_samples(TASK, TOKENS, 1)[0].context)
    seen = _Queries()
    model.prefill(context, seen)
    found = recorded(REFERENCE_MODEL)
    assert len(found) == model.layers
    for layer, (q, k, v) in enumerate(found):
        torch.testing.assert_close(q, seen.newest[layer], atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(k, seen.k[layer][0], atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(v, seen.v[layer][0], atol=2e-3, rtol=1e-3)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(VortexError, match="are needed"):
        measure(_program(cast="fp16"), STATIC, _ones(2, 4), _ones(1, 9, 4), _ones(1, 9, 4), "bf16")
