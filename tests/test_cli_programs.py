"""`vortex check`, `bench` and `doctor`: status and output, with compilers and clocks that answer as the tests say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from face_fixtures import vortex

from vortexlab import benching
from vortexlab.benching import GATE_CONTEXTS, gate_contexts
from vortexlab.dsl import canonical_hash
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator import speed
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.kernels.gate import Gate
from vortexlab.kernels.gpu import report
from vortexlab.kernels.gpu.report import KernelReport
from vortexlab.search_spaces.library import load

KERNEL = KernelReport("attend_split", "sm_90", 96, 16, 49152, ("tensor core",))
SMALL = ("--lengths", "256", "--batch", "2", "--geometry", "qwen3-1.7b", "--threads", "1", "--device", "cpu")


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Replaces the compiler; returns the targets that it was asked for."""
    asked: list[tuple[str, ...]] = []

    def compiled(program: Any, static: Any, targets: tuple[str, ...], *_: Any, **__: Any) -> list[KernelReport]:
        asked.append(tuple(targets))
        return [KERNEL]

    monkeypatch.setattr(report, "compile_report", compiled)
    return asked


def refuse(*_: Any, **__: Any) -> list[KernelReport]:
    raise VortexError("compiling its kernels took over 60 s; make it smaller")


def test_check_prints_what_the_kernels_use(compiler: list[tuple[str, ...]]) -> None:
    done = vortex("check", "quest", "--json", "--knob", "budget=8", "--lengths", "1k,4096", "--predict-for", "h200")
    found = done.json("check")
    assert done.status == 0 and found["ok"] and found["compile_failure"] == ""
    assert compiler == [report.TARGETS]
    assert [(item["registers"], item["spilled_bytes"], item["uses"]) for item in found["kernels"]] == [
        (96, 16, ["tensor core"])
    ]
    assert found["page_bounds"] == {"1024": 11, "4096": 11}  # the budget, the sink, two recent ones
    assert {item["name"]: item["value"] for item in found["knobs"]}["budget"] == 8
    text = vortex("check", "quest", "--target", "sm_90", "--lengths", "4096")
    assert text.status == 0 and "attend_split" in text.out and "PREDICTED" in text.out
    assert compiler[-1] == ("sm_90",)
    assert vortex("check", "quest", "--target", "none").status == 0 and len(compiler) == 2


NARROW = """@program(page=16, kv="fp8_e4m3", summaries="fp8_e5m2")
class Narrow:
    def summarize(k):
        return dict(c=k.sum(token))
    def score(q, s):
        return (dot(q, s.c, channel) * 1000.0).to("fp8_e4m3").max(head)
    def select(score):
        return topk(score, 8)
"""


def test_check_measures_what_saturates(tmp_path: Path) -> None:
    file = tmp_path / "narrow.py"
    file.write_text(NARROW)
    done = vortex("check", file, "--json", "--lengths", "4096", "--predict-for", "h200")
    found = done.json("check")
    assert done.status == 0 and (found["kv"], found["kv_dtype"], found["dtype"]) == ("fp8_e4m3", "fp8_e4m3", "bf16")
    rows = {(row["input"], row["what"]): row for row in found["saturation"]["rows"]}
    assert {what for _, what in rows} == {"k", "v", "summary c", "cast"}
    assert {name for name, _ in rows} == set(found["saturation"]["inputs"]) == {"normal", "outliers", "reference model"}
    assert rows["normal", "cast"]["over"] > 0.5 and rows["normal", "cast"]["line"] == 6
    assert all(row["over"] == 0 for (_, what), row in rows.items() if what != "cast")
    assert all(rows[name, "k"]["under"] > 0 for name in found["saturation"]["inputs"]), "numbers near 0 become 0"
    (cost,) = found["costs"]
    assert (cost["dtype"], cost["dense_dtype"]) == ("fp8_e4m3", "bf16")
    text = vortex("check", file, "--lengths", "4096", "--predict-for", "h200").out
    assert "cast, line 6" in text and "beyond the range" in text and "KV cache in fp8_e4m3" in text
    wide = vortex("check", "quest", "--json", "--target", "none").json("check")
    assert wide["saturation"] is None and wide["kv_dtype"] == "bf16"
    narrowed = vortex("check", "quest", "--json", "--target", "none", "--dtype", "fp8_e5m2").json("check")
    assert {row["what"] for row in narrowed["saturation"]["rows"]} == {"k", "v", "summary lo", "summary hi"}


def test_bench_times_the_declared_cache(tmp_path: Path) -> None:
    file = tmp_path / "narrow.py"
    file.write_text(NARROW)
    found = vortex("bench", file, *SMALL, "--json").json("bench")
    assert (found["conditions"]["dtype"], found["conditions"]["kv_dtype"]) == ("float32", "fp8_e4m3")
    assert found["rows"][0]["failure"] == "" and found["rows"][0]["predicted"]["dense_dtype"] == "fp32"
    text = vortex("bench", file, *SMALL).out
    assert "fp8_e4m3; dense attention in float32" in text


def test_a_program_that_does_not_compile_has_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "compile_report", refuse)
    done = vortex("check", "quest", "--json")
    found = done.json("check")
    assert done.status == 1 and not found["ok"] and "took over 60 s" in found["compile_failure"]
    text = vortex("check", "quest")
    assert text.status == 1 and "does not compile: compiling its kernels took over 60 s" in text.out


def test_bench_measures_and_says_under_which_conditions() -> None:
    done = vortex("bench", "sink_window", *SMALL, "--seed", "3", "--json")
    found = done.json("bench")
    (row,) = found["rows"]
    assert done.status == 0 and (row["context"], row["batch"], row["failure"]) == (256, 2, "")
    assert row["speedup"]["low"] <= row["speedup"]["value"] <= row["speedup"]["high"]
    assert row["baseline"] in row["baselines_ms"] and 0 < row["density"] <= 1
    assert found["program"] == "SinkWindow" and found["conditions"]["seed"] == 3
    assert found["conditions"]["geometry"]["name"] == "qwen3-1.7b" and found["conditions"]["device"]


def test_a_timed_output_that_is_wrong_has_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any, **__: Any) -> speed.Timing:
        raise speed.SpeedError("a timed output is off by 0.5 of its norm")

    monkeypatch.setattr(speed, "measure", wrong)
    done = vortex("bench", "sink_window", *SMALL, "--json")
    assert done.status == 1
    row = done.json("bench")["rows"][0]
    assert row["speedup"] is None and "off by 0.5" in row["failure"]
    text = vortex("bench", "sink_window", *SMALL)
    assert text.status == 1 and "context 256: a timed output is off by 0.5" in text.out


def test_bench_measures_the_dense_gate() -> None:
    words = ("--gate", "--batches", "1,2", "--lengths", "256,512", "--geometry", "qwen3-1.7b", "--threads", "1",
             "--device", "cpu", "--seed", "3")  # fmt: skip
    found = vortex("bench", "sink_window", *words, "--json").json("bench")
    cells = [(1, 256), (1, 512), (2, 256), (2, 512)]
    assert [(row["batch"], row["context"]) for row in found["rows"]] == cells
    gate = found["gate"]
    assert gate == Gate.from_json(gate).to_json()
    assert [{**item["speedup"], "batch": item["batch"], "context": item["context"]} for item in found["rows"]] == (
        gate["ratios"]
    )
    bound = load("sink_window").bind()
    assert gate["conditions"] == {**found["conditions"], "program_hash": canonical_hash(bound)}
    text = vortex("bench", "sink_window", *words)
    assert text.status == 0 and "DENSE GATE" in text.out and "sparse from" in text.out


def test_a_gate_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--batches instead of --batch" in vortex("bench", "quest", *SMALL, "--gate").complaint()
    assert "add --gate" in vortex("bench", "quest", *SMALL, "--batches", "1").complaint()
    plain = ("--geometry", "qwen3-1.7b", "--threads", "1", "--device", "cpu", "--gate")
    assert "different whole numbers" in vortex("bench", "quest", *plain, "--batches", "2,2").complaint()
    assert "different whole numbers" in vortex("bench", "quest", *plain, "--batches", "0").complaint()
    assert "at least 64" in vortex("bench", "quest", *plain, "--lengths", "8").complaint()
    assert "none of 1024, 4096, 16384" in vortex("bench", "quest", *plain, "--batches", "1000").complaint()
    assert "give --lengths within" in vortex("bench", "top_p", *plain, "--lengths", "32k").complaint()

    def wrong(*_: Any, **__: Any) -> speed.Timing:
        raise speed.SpeedError("a timed output is off by 0.5 of its norm")

    monkeypatch.setattr(speed, "measure", wrong)
    words = (*plain, "--batches", "1,2", "--lengths", "256")
    done = vortex("bench", "sink_window", *words, "--json")
    assert done.status == 1 and done.json("bench")["gate"] is None
    text = vortex("bench", "sink_window", *words)
    assert text.status == 1 and "batch 2, context 256: a timed output" in text.out and "DENSE GATE" not in text.out


def test_contexts_of_a_gate_are_those_that_can_be_timed() -> None:
    config, quest, top_p = EvaluationConfig(), load("quest").bind(), load("top_p").bind()
    assert gate_contexts(quest, config, (1, 4)) == gate_contexts(top_p, config, (1, 4)) == GATE_CONTEXTS
    assert gate_contexts(quest, config, (16,)) == (1024, 4096)
    wide = EvaluationConfig(batch_tokens=GATE_CONTEXTS[-1] * 8)
    assert gate_contexts(quest, wide, (8, 1)) == GATE_CONTEXTS


def test_doctor_names_what_is_missing_and_shows_no_key(
    compiler: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    done = vortex("doctor", "--runs", tmp_path, "--json")
    found = done.json("doctor")
    assert done.status == 0 and "sk-secret" not in done.out
    items = {(item["area"], item["name"]): item for item in found["items"]}
    assert items["key", "OPENAI_API_KEY"]["ok"] and not items["key", "HF_TOKEN"]["ok"]
    assert items["model", "reference model"]["ok"] and all(items["compiler", name]["ok"] for name in report.TARGETS)
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setattr(report, "compile_report", refuse)
    again = json.loads(vortex("doctor", "--runs", tmp_path, "--json").out)
    assert any("set OPENAI_API_KEY" in line for line in again["missing"])
    assert any("kernels do not compile for sm_90: compiling" in line for line in again["missing"])
    text = vortex("doctor", "--runs", tmp_path).out
    assert "reference model" in text and "kernels do not compile for gfx942" in text


def test_a_gpu_that_is_missing_or_too_old_or_too_small_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for command in (("bench", "quest", *SMALL), ("bench", "quest", "--gate")):
        assert "torch finds no GPU; use --device cpu" in vortex(*command, "--device", "cuda").complaint()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    complaint = vortex("bench", "quest", *SMALL, "--device", "cuda").complaint()
    assert "Tesla T4 has compute capability 7.5, and the kernels need 8.0" in complaint

    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(benching.Workload, "make", full)
    complaint = vortex("bench", "quest", *SMALL, "--batch", "2", "--device", "cpu").complaint()
    assert "2 requests of 256 tokens do not fit the memory of" in complaint and "try --batch 1" in complaint
