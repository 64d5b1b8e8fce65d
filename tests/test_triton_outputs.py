"""Attention outputs of a program's own on the Triton executor: equal to the reference, and what they compile to."""

from __future__ import annotations

import pytest
from triton_runs import interpreted

from vortexlab.dsl import parse
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Static
from vortexlab.dsl.testing import with_page
from vortexlab.kernels.gpu.coverage import check_coverage, uncovered
from vortexlab.kernels.gpu.report import TARGETS, compile_report
from vortexlab.search_spaces import load

STATIC = Static(kv_heads=8, group=4, head_dim=128, scale=128**-0.5)


def test_outputs_equal_the_reference() -> None:
    assert interpreted("outputs") == []


def test_planted_faults_are_found() -> None:
    found = interpreted("output_faults")
    assert len(found) == 11
    assert not [fault for fault, disagreement in found.items() if disagreement is None]


def test_random_outputs_equal_the_reference() -> None:
    found = interpreted("covered", programs=[4, 14, 28, 35, 47, 60])
    assert not found["disagreements"], "\n".join(found["disagreements"])
    assert found["outputs"] == found["cases"] == 6


@pytest.mark.parametrize(("name", "kernels"), [
    ("vattention", {"attend_split", "attend_combine"}),
    ("retroinfer", {"attend_split", "attend_entries", "attend_combine"}),
])  # fmt: skip
def test_published_outputs_compile_without_spills(name: str, kernels: set[str]) -> None:
    for page in (16, 64):
        found = compile_report(with_page(load(name), page).bind(), STATIC, ("sm_90",))
        assert kernels == {item.kernel for item in found if item.kernel.startswith("attend")}
        assert not [item for item in found if item.spilled_bytes]
        assert all("tensor core" in item.uses for item in found if item.kernel in kernels - {"attend_combine"})


@pytest.mark.parametrize(("dtype", "targets"), [
    ("bf16", ("sm_90",)),
    pytest.param("bf16", TARGETS, marks=pytest.mark.slow),
    pytest.param("fp8_e4m3", TARGETS, marks=pytest.mark.slow),
])  # fmt: skip
def test_gates_of_two_attentions_compile(dtype: str, targets: tuple[str, ...]) -> None:
    text = (
        "@program(page=16)\nclass P:\n    def summarize(k, v): return dict(a=k.mean(token), b=v.mean(token))\n"
        "    def score(q, s): return dot(q, s.a, channel)\n    def select(score): return topk(score, 8)\n"
        "    def attend(q, s, score, pages):\n        g = sigmoid(q.sum(channel))\n"
        "        return g * attention(pages, log_weight=score) + (1 - g) * attention(keys=s.a, values=s.b)\n"
    )
    found = compile_report(parse(text).bind(), STATIC, targets, dtype, seconds=900)
    assert {"attend_split", "attend_entries", "finish"} <= {item.kernel for item in found}
    assert {item.target for item in found} == set(targets)
    # Entries in fp8 are multiplied in fp32, which takes more registers than there are.
    spilled = [item for item in found if item.target == "sm_90" and item.spilled_bytes]
    assert {item.kernel for item in spilled} <= ({"attend_entries"} if dtype == "fp8_e4m3" else set())
    assert all(item.spilled_bytes <= 256 for item in spilled)


def test_what_is_missing_is_named() -> None:
    head = "@program(page=4)\nclass P:\n    def summarize(k, v): return dict(a=k.mean(token), b=v.mean(token))\n"
    head += "    def score(q, s): return dot(q, s.a, channel)\n    def select(score): return topk(score.max(head), 2)\n"
    head += "    def attend(q, s, score, pages): return "
    missing = {
        "attention(keys=2.0 * s.a, values=s.b)": "entries that are no summaries as they are stored",
        "attention(pages) * where(member(pages), 1.0, 0.0).sum(page)": "member in gates of the output",
        "attention(pages, log_weight=where(member(topk(score, 1)), 0.0, 1.0))": "member of a set per query head",
        "attention(pages, log_weight=(where(member(pages), 1.0, 0.0) * q).max(channel))":
            "member beside other axes than page and head",
    }  # fmt: skip
    for text, word in missing.items():
        assert uncovered(parse(head + text).bind(), STATIC) == (word,)
    halves = head.replace("mean(token)", "split(token, half=2).mean(token)")
    halves = halves.replace(", channel)", ", channel).max(half)")
    weighed = parse(halves + "attention(keys=s.a, values=s.b, log_weight=s.a.max(channel))").bind()
    assert uncovered(weighed, STATIC) == ("log-weights along an axis of the entries",)
    latent = Static(1, 4, 576, 0.1, latent=512)
    program = parse("@program(page=4)\nclass P:\n    def select(): return first(1)\n"
                    "    def attend(pages): return 0.5 * attention(pages)\n").bind()  # fmt: skip
    with pytest.raises(VortexError, match="an attention output of the program's own over latent keys"):
        check_coverage(program, latent)
