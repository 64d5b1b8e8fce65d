"""Parameters, memory, reuse, prefill, attention output and latent keys in `vortex check`, `eval` and `bench`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from face_fixtures import vortex
from safetensors.torch import save_file

from vortexlab.binding import bind, check_evaluation
from vortexlab.dsl import parse
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.config import REFERENCE_MODEL, EvaluationConfig
from vortexlab.evaluator.geometries import GEOMETRIES, find_geometry
from vortexlab.kernels.gpu.coverage import check_coverage, uncovered
from vortexlab.search_spaces import library

SMALL = ("--lengths", "256", "--batch", "1", "--geometry", "qwen3-1.7b", "--threads", "1", "--device", "cpu")
FEW = ("--target", "none", "--lengths", "1k", "--predict-for", "h200")
WEIGHTED = """
from vortexlab.dsl import *

@program(page=16)
class Weighted:
    importance = param(channel)

    def summarize(k): return dict(c=k.mean(token) * importance)
    def score(q, s): return dot(q, s.c, channel).max(head)
    def select(score): return topk(score, 4, among=~first(1)) | first(1)
"""


@pytest.fixture
def weighted(tmp_path: Path) -> Path:
    file = tmp_path / "weighted.py"
    file.write_text(WEIGHTED)
    return file


def saved(folder: Path, **tensors: torch.Tensor) -> Path:
    file = folder / "parameters.safetensors"
    save_file(tensors, file)
    return file


def test_check_tells_what_a_program_carries() -> None:
    done = vortex("check", "nsa", *FEW, "--json")
    found = done.json("check")
    assert done.status == 0 and found["ok"] and found["block"] == 64 and found["parameters_digest"] is None
    gate = next(item for item in found["parameters"] if item["name"] == "select_gate")
    assert gate["shape"] == {"layer": 36, "kv_head": 8, "head": 4, "channel": 128}
    assert ["pages"] in found["attention"] and ["keys", "values", "log_weight"] in found["attention"]
    assert {"concat", "shift"} <= set(found["not_covered"])
    text = vortex("check", "nsa", *FEW)
    assert text.status == 0 and "not covered" in text.out and "select_gate [layer 36, kv_head 8" in text.out
    memory = vortex("check", "h2o_tokens", *FEW, "--json").json("check")["memories"]
    assert [(item["scope"], item["kind"]) for item in memory] == [("step", "float")]
    reuse = vortex("check", "lserve", *FEW, "--knob", "every=8", "--json").json("check")["reuse"]
    assert [(item["over"], item["every"]) for item in reuse] == [("steps", 8)]
    plain = vortex("check", "quest", *FEW, "--json").json("check")
    assert plain["not_covered"] == plain["memories"] == plain["attention"] == [] and plain["kv"] == "auto"


def test_latent_keys_need_a_geometry_that_has_them() -> None:
    assert "choose a geometry of latent attention" in vortex("check", "mla_rope_unaware", *FEW).complaint()
    flash = vortex("check", "mla_rope_unaware", *FEW, "--geometry", "glm-4.7-flash", "--json").json("check")
    assert flash["reads_latent"] and flash["geometry"]["latent"] == 512
    assert flash["not_covered"] == []
    text = vortex("check", "mla_rope_unaware", *FEW, "--latent", "256").out
    assert "256 of 320 channels" in text and "32 query heads share one KV head" in text


@pytest.mark.parametrize("name", [name for name, item in GEOMETRIES.items() if item.latent])
def test_published_geometries_of_latent_attention(name: str) -> None:
    static = find_geometry(name).static(3)
    assert (static.kv_heads, static.head_dim, static.value_dim, static.layer) == (1, 576, 512, 3)
    assert static.scale == pytest.approx({"glm-4.7-flash": 256, "deepseek-v2-lite": 192}[name] ** -0.5)


def test_a_config_of_latent_attention_is_read(tmp_path: Path) -> None:
    config = {"num_attention_heads": 16, "hidden_size": 2048, "num_hidden_layers": 27, "kv_lora_rank": 512,
              "qk_rope_head_dim": 64, "qk_nope_head_dim": 128}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = find_geometry(str(tmp_path))
    assert found.static() == GEOMETRIES["deepseek-v2-lite"].static()
    (tmp_path / "config.json").write_text(json.dumps({**config, "qk_rope_head_dim": 0}))
    with pytest.raises(VortexError, match="without qk_rope_head_dim"):
        find_geometry(str(tmp_path))


@pytest.mark.parametrize("tensors, complaint", [
    ({"other": torch.ones(28, 128)}, "no tensor 'importance'; they have other"),
    ({"importance": torch.ones(28, 64)}, r"shape \[28, 64\]; expected \[28, 128\]: \[layer 28, channel 128\]"),
    ({"importance": torch.ones(28, 128, dtype=torch.int32)}, "of int32; expected floats"),
    ({"importance": torch.full((28, 128), float("nan"))}, "3584 numbers that are not finite"),
])  # fmt: skip
def test_parameters_that_do_not_fit_are_bad_input(
    tensors: dict[str, Any], complaint: str, weighted: Path, tmp_path: Path
) -> None:
    file = saved(tmp_path, **tensors)
    for command in ("check", "bench"):
        more = (*FEW, "--geometry", "qwen3-1.7b") if command == "check" else SMALL
        assert re.search(complaint, vortex(command, weighted, "--parameters", file, *more).complaint())
    assert "the parameter importance" in vortex("eval", weighted, "--parameters", saved(
        tmp_path, importance=torch.ones(2, 3)), "--screen").complaint()  # fmt: skip


def test_files_of_parameters_that_are_none(weighted: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.safetensors"
    for command in ("check", "eval", "bench"):
        assert "cannot read the parameters" in vortex(command, weighted, "--parameters", missing).complaint()
    assert "no safetensors file" in vortex("bench", weighted, "--parameters", weighted, *SMALL).complaint()
    assert "leave out --parameters" in vortex("bench", "quest", "--parameters", weighted, *SMALL).complaint()
    for command in ("eval", "bench"):
        assert "give --parameters FILE.safetensors" in vortex(command, weighted).complaint()


def test_bench_runs_a_program_with_parameters(weighted: Path, tmp_path: Path) -> None:
    file = saved(tmp_path, importance=torch.rand(28, 128, generator=torch.Generator().manual_seed(0)))
    checked = vortex("check", weighted, "--parameters", file, *FEW, "--geometry", "qwen3-1.7b", "--json").json("check")
    assert checked["parameters_digest"] and checked["not_covered"] == []
    done = vortex("bench", weighted, "--parameters", file, *SMALL, "--json")
    (row,) = done.json("bench")["rows"]
    assert done.status == 0 and row["failure"] == "" and row["density"] == pytest.approx(6 / 16, abs=0.05)


def test_measured_speed_needs_parameters_that_fit_its_geometry(tmp_path: Path) -> None:
    shape = find_geometry(str(REFERENCE_MODEL))
    program = parse(WEIGHTED)
    bound = bind(program, {}, saved(tmp_path, importance=torch.ones(shape.layers, shape.head_dim)))
    check_evaluation(bound, EvaluationConfig(speed="predicted"))
    check_evaluation(bound, EvaluationConfig(geometry=str(REFERENCE_MODEL)))
    with pytest.raises(VortexError, match=r"not the geometry of the speed gate, qwen3-8b.*give --geometry"):
        check_evaluation(bound, EvaluationConfig())


def test_coverage_names_what_has_no_kernels() -> None:
    static = GEOMETRIES["qwen3-8b"].static()
    expected = {
        "quest": (), "top_p": (), "vertical": (), "lserve": ("reuse",), "snapkv": ("reuse", "window"),
        "running_average": ("memory",), "twilight": (), "loki": (), "retroinfer": (), "vattention": (),
        "rocketkv": ("sort", "take"),
    }  # fmt: skip
    assert {name: uncovered(library.load(name).bind(), static) for name in expected} == expected
    with pytest.raises(VortexError, match="do not cover sort, take yet; run it with --device cpu"):
        check_coverage(library.load("rocketkv").bind(), static)
    dated = "@program(page=16)\nclass Dated:\n    def select(ctx): return first(ctx.position // 64)\n"
    assert uncovered(parse(dated).bind(), static) == ("ctx.position",)
