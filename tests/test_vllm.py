"""vLLM on the CPU with a program in its decode steps; `make test-vllm` installs what this needs and runs it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.vllm_run import MARK
from vortexlab.deploy import package
from vortexlab.deploy.install import install
from vortexlab.deploy.vllm import plugin
from vortexlab.deploy.vllm.checks import pattern_of
from vortexlab.dsl import parse
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program
from vortexlab.evaluator.config import REFERENCE_MODEL
from vortexlab.evaluator.tasks import make_samples
from vortexlab.search_spaces.library import load

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm", reason="vLLM is not installed here; run `make test-vllm`")

COUNT = 40
TASKS = (("keys", 450), ("needles", 336), ("multivalue", 290), ("chain", 200), ("needle", 98))
EVERYTHING = load("dense").bind()
#: 7 pages of 16 or 4 of 64 tokens are read.
QUEST = load("quest").bind({"page": 16, "budget": 4})
WIDE = load("quest").bind({"page": 64, "budget": 4, "recent": 1, "sink": 0})
#: Both kinds of step state: an average over steps, and a set that is renewed now and then.
CARRIES = parse("""
@program(page=16)
class Carries:
    mass = memory.step(page, every=3)
    below = memory.layer(page)

    def summarize(k): return dict(c=k.mean(token))
    def score(q, s, m): return dot(q, s.c, channel).max(head) + m.mass + m.below
    def select(score, m, ctx):
        return last(2) | reuse(topk(score, 2), every=4)
    def remember(q, s, score, m):
        return dict(mass=0.5 * m.mass + softmax(score, page), below=s.c.max(channel))
""").bind()
ROOM = {"kv_cache_memory_bytes": 64 << 20}
#: 48 blocks of 32 tokens beside the null block: the prompts take 47, and what they generate needs more.
TIGHT = {"num_gpu_blocks_override": 49, "kv_cache_memory_bytes": 64 << 20}


def prompts() -> list[list[int]]:
    """Ragged questions, as token ids."""
    samples = [make_samples(task, length, 1)[0] for task, length in TASKS]
    return [[*item.context, *item.turns[0].question] for item in samples]


def rounds() -> list[list[list[int]]]:
    """Questions, and then others that begin with whole blocks of them: one is a block's first token longer."""
    first = prompts()
    return [first, [[*first[0], 7, 8, 9], first[1][:257], first[2]]]


def run(folder: Path, program: Program | None, *, inside: bool = True, **engine: Any) -> dict[str, Any]:
    """What an engine generates for all rounds, in a process of its own; see tests/vllm_run.py."""
    given: dict[str, Any] = {
        "model": str(REFERENCE_MODEL), "dtype": "float32", "enforce_eager": True, "seed": 0, "max_model_len": 640,
        "enable_prefix_caching": True, "enable_chunked_prefill": True, "max_num_batched_tokens": 128,
        "max_num_seqs": 8, "disable_log_stats": False, "block_size": 32, **engine,
    }  # fmt: skip
    if program is not None:
        written = package.write(
            program, folder / "package", engine="vllm", version="0.1.0", knobs={}, source=program.source,
            measurements={}, selftest={"cases": []},
        )  # fmt: skip
        install(folder / "package", folder / "site")
        given["additional_config"] = {"vortex": written.module}
    job = folder / "job.json"
    stock = program is None
    job.write_text(
        json.dumps({"engine": given, "rounds": rounds(), "count": COUNT, "inside": inside, "stock": stock})
    )
    script = Path(__file__).with_name("vllm_run.py")
    paths = [str(folder / "site"), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    done = subprocess.run(
        [sys.executable, script, job], capture_output=True, text=True, cwd=folder, timeout=1800,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    assert done.returncode == 0 and lines, done.stdout[-3000:] + done.stderr[-3000:]
    return {**json.loads(lines[0].removeprefix(MARK)), "log": done.stdout + done.stderr}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Runs of engines by name, each made when it is first asked for."""
    makers: dict[str, tuple[Program | None, dict[str, Any]]] = {
        "stock": (None, ROOM),
        "everything": (EVERYTHING, {**ROOM, "inside": False}),  # in processes of its own, as for users
        "everything, tight": (EVERYTHING, TIGHT),
        "quest": (QUEST, {**ROOM, "block_size": 128}),
        "quest, tight": (QUEST, TIGHT),
        "wide": (WIDE, ROOM),
        "carries": (CARRIES, ROOM),
        "carries, tight": (CARRIES, TIGHT),
        "two ranks": (QUEST, {**ROOM, "tensor_parallel_size": 2, "inside": False}),
    }

    @cache
    def made(name: str) -> dict[str, Any]:
        program, settings = makers[name]
        return run(tmp_path_factory.mktemp("engine"), program, **settings)

    return made


@torch.inference_mode()
def transformers_tokens(program: Program, ids: list[int]) -> list[int]:
    """The same in transformers: the whole prompt densely, then one sparse step a token."""
    from transformers import AutoModelForCausalLM

    from vortexlab.deploy.huggingface.pattern import Pattern

    pattern = Pattern(program, f"vllm_test_{program.name}_{program.page_size}")
    model = AutoModelForCausalLM.from_pretrained(
        REFERENCE_MODEL, dtype=torch.float32, attn_implementation=pattern.register()
    ).eval()
    held = pattern.cache(model.config)
    step, found = torch.tensor([ids]), []
    for _ in range(COUNT):
        found.append(int(model(input_ids=step, past_key_values=held, logits_to_keep=1).logits[0, -1].argmax()))
        step = torch.tensor([[found[-1]]])
    return found


@pytest.mark.parametrize("name", ["everything", "everything, tight"])
def test_everything_is_the_stock_backend(engine: Any, name: str) -> None:
    """Token for token, in float32: ragged prompts together, in chunks, with prefix hits, and after preemptions."""
    stock, ours = engine("stock"), engine(name)
    assert "decode steps run program Dense" in ours["log"] and "decode steps" not in stock["log"]
    assert ours["tokens"] == stock["tokens"]
    assert (ours["preemptions"] > 0) == ("tight" in name) and stock["preemptions"] == 0
    if "tight" not in name:
        assert ours["cached"] == stock["cached"] and max(ours["cached"][1]) >= 256


@pytest.mark.parametrize("name, program", [("quest", QUEST), ("wide", WIDE), ("carries", CARRIES)])
def test_a_sparse_program_is_itself_in_transformers(engine: Any, name: str, program: Program) -> None:
    """Pages smaller than blocks and larger ones, and a program that carries something for each request; decoding rows
    beside prompts, and prompts of which one token is new.

    The pattern matters: dense attention generates something else.
    """
    ours, dense = engine(name), engine("stock")
    expected = [[transformers_tokens(program, ids) for ids in group] for group in rounds()]
    assert ours["tokens"] == expected
    assert ours["tokens"] != dense["tokens"]
    assert all(ours["seen"][kind] > 0 for kind in ("mixed", "pure", "one_token_prompts"))
    assert max(ours["cached"][1]) >= 256


def test_ranks_of_a_tensor_parallel_engine_select_for_their_own_heads(engine: Any) -> None:
    assert engine("two ranks")["tokens"] == engine("quest")["tokens"]


@pytest.mark.parametrize("name", ["quest", "quest, tight", "wide", "carries, tight"])
def test_summaries_are_a_function_of_the_pool(engine: Any, name: str) -> None:
    """At every step and layer, after chunks, prefix hits, preemptions and blocks used again, those of all pages in use
    equal summaries made anew from the pool, bit for bit."""
    ours = engine(name)
    assert ours["seen"]["summaries"] > 1000 and ours["seen"]["wrong_summaries"] == 0
    assert max(ours["cached"][1]) > 0 and (ours["preemptions"] > 0) == ("tight" in name)


@pytest.mark.parametrize("name, block", [("quest", 128), ("quest, tight", 32)])
def test_the_pool_is_laid_out_as_relied_upon(engine: Any, name: str, block: int) -> None:
    """docs/deploy.md, "Engine contracts": facts that `deploy/vllm` takes for granted, seen in a run."""
    seen = engine(name)["seen"]
    blocks, heads, tokens, channels = seen["pool"]
    assert (heads, tokens, channels) == (2, block, 2 * 64), "a pool is no longer [blocks, kv_heads, block, 2 * channel]"
    assert seen["strides"] == [heads * tokens * channels, tokens * channels, channels, 1], "blocks lie differently"
    assert name == "quest" or blocks == TIGHT["num_gpu_blocks_override"], "num_gpu_blocks_override means less now"
    assert seen["slots"] > 1000 and seen["wrong_slots"] == 0, "a slot is no longer block * size + place in the block"
    assert seen["null_blocks"] == 0, "block 0 holds tokens now"
    assert seen["layer"] == "model.layers.5.self_attn.attn", "the name of a layer no longer has its number"


def test_the_interface_has_what_is_relied_upon() -> None:
    from vllm.config import VllmConfig
    from vllm.v1.attention.backend import (
        AttentionBackend,
        AttentionCGSupport,
        AttentionImpl,
        CommonAttentionMetadata,
    )
    from vllm.v1.attention.backends import cpu_attn, flash_attn
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    def parameters(function: Any) -> list[str]:
        return [name for name in inspect.signature(function).parameters if name != "self"]

    def fields(kind: Any) -> set[str]:
        return {item.name for item in dataclasses.fields(kind)}

    wanted = {
        "query_start_loc", "query_start_loc_cpu", "seq_lens", "num_reqs", "num_actual_tokens", "max_query_len",
        "max_seq_len", "block_table_tensor", "slot_mapping", "is_prefilling",
    }  # fmt: skip
    lacking = wanted - fields(CommonAttentionMetadata)
    assert not lacking, f"vLLM's CommonAttentionMetadata has lost {sorted(lacking)}"
    lacking = {"additional_config", "kv_transfer_config", "speculative_config"} - fields(VllmConfig)
    assert not lacking, f"vLLM's VllmConfig has lost {sorted(lacking)}"
    stock = cpu_attn.CPUAttentionBackendImpl
    assert parameters(stock.forward) == parameters(AttentionImpl.forward) == [
        "layer", "query", "key", "value", "kv_cache", "attn_metadata", "output", "output_scale", "output_block_scale",
    ], "the arguments of vLLM's attention have changed"  # fmt: skip
    assert parameters(stock.do_kv_cache_update) == ["layer", "key", "value", "kv_cache", "slot_mapping"], (
        "the arguments of vLLM's cache update have changed"
    )
    assert parameters(cpu_attn.CPUAttentionMetadataBuilder.build) == [
        "common_prefix_len", "common_attn_metadata", "fast_build",
    ], "the arguments of vLLM's metadata builder have changed"  # fmt: skip
    gpu = flash_attn.FlashAttentionImpl
    assert parameters(gpu.forward) == parameters(stock.forward), "vLLM's FlashAttention has other arguments now"
    assert parameters(flash_attn.FlashAttentionMetadataBuilder.build) == parameters(
        cpu_attn.CPUAttentionMetadataBuilder.build
    ), "vLLM's FlashAttention has another metadata builder now"
    for kind in (stock, gpu):
        held = {*parameters(kind.__init__), *inspect.getsource(kind.__init__).split("self.")}
        assert any(word.startswith("num_queries_per_kv ") for word in held), f"{kind.__name__} has lost its group size"
    assert not flash_attn.FlashAttentionBackend.forward_includes_kv_cache_update, "FlashAttention writes the cache now"
    assert AttentionCGSupport.NEVER, "vLLM has no word for attention outside CUDA graphs now"
    assert not cpu_attn.CPUAttentionBackend.forward_includes_kv_cache_update, "vLLM's attention writes the cache now"
    layouts = [item.name for item in cpu_attn.CPUAttentionBackend.supported_kv_cache_layouts()]
    assert layouts == ["LBHNC"], f"vLLM's CPU pool has another layout: {layouts}"
    assert parameters(register_backend)[:2] == ["backend", "class_path"] and AttentionBackendEnum.CPU_ATTN
    assert not AttentionBackend.is_sparse(), "vLLM takes attention for sparse unless told otherwise"


def engine_config(pattern: Any, **changes: Any) -> Any:
    """Of vLLM's configuration what is looked at before anything is loaded."""
    parallel = {"tensor_parallel_size": 1, "decode_context_parallel_size": 1, **changes.pop("parallel", {})}
    return SimpleNamespace(**{
        "additional_config": {"vortex": pattern}, "kv_transfer_config": None, "speculative_config": None,
        "parallel_config": SimpleNamespace(**parallel), "model_config": SimpleNamespace(), **changes,
    })  # fmt: skip


def written(program: Program, folder: Path) -> Path:
    package.write(
        program, folder, engine="vllm", version="0.1.0", knobs={}, source=program.source, measurements={}, selftest={}
    )
    return folder


@pytest.mark.parametrize("room, stock", [("cpu", "CPUAttentionBackendImpl"), ("cuda", "FlashAttentionImpl")])
def test_an_engine_without_a_pattern_has_the_stock_attention(
    room: str, stock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = importlib.import_module(f"vortexlab.deploy.vllm.{room}")
    folder = str(written(QUEST, tmp_path / "plain"))
    for pattern, name in ((None, stock), (folder, "SparseImpl")):
        monkeypatch.setattr(ours, "get_current_vllm_config", lambda pattern=pattern: engine_config(pattern))
        assert ours.SparseBackend.get_impl_cls().__name__ == name


def test_an_engine_that_does_not_fit_is_refused_with_one_line(tmp_path: Path) -> None:
    plain = str(written(QUEST, tmp_path / "plain"))
    assert pattern_of(engine_config(plain)).program == QUEST and pattern_of(engine_config(None)) is None
    for changed, words in (
        ({"kv_transfer_config": object()}, "a KV connector"),
        ({"speculative_config": object()}, "speculative decoding"),
        ({"parallel": {"decode_context_parallel_size": 2}}, "context parallelism"),
        ({"parallel": {"enable_dbo": True}}, "beside each other"),
        ({"model_config": SimpleNamespace(rswa_window=128)}, "R-SWA"),
        ({"model_config": SimpleNamespace(is_mm_prefix_lm=True)}, "look ahead"),
    ):
        with pytest.raises(VortexError, match=words):
            pattern_of(engine_config(plain, **changed))


def test_tensor_parallel_ranks_select_for_themselves(tmp_path: Path) -> None:
    two = {"parallel": {"tensor_parallel_size": 2}}
    assert pattern_of(engine_config(str(written(QUEST, tmp_path / "plain")), **two)).program == QUEST
    for name, words in (("quest_shared", "shares scores"), ("bigbird", "at random")):
        folder = str(written(load(name).bind(), tmp_path / name))
        assert pattern_of(engine_config(folder))
        with pytest.raises(VortexError, match=words):
            pattern_of(engine_config(folder, **two))


def test_stages_of_a_pipeline_hand_nothing_upwards(tmp_path: Path) -> None:
    two = {"parallel": {"pipeline_parallel_size": 2}}
    assert pattern_of(engine_config(str(written(QUEST, tmp_path / "plain")), **two)).program == QUEST
    with pytest.raises(VortexError, match="from layer to layer"):
        pattern_of(engine_config(str(written(CARRIES, tmp_path / "carries")), **two))


def test_another_vllm_is_refused_by_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm

    plugin.register()
    for version in ("0.31.2", "0.34.0", "1.0"):
        monkeypatch.setattr(vllm, "__version__", version)
        with pytest.raises(VortexError, match=rf">= 0.32, < 0.34, and {version} is installed.*VLLM_PLUGINS="):
            plugin.register()
