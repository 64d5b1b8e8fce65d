"""Generated kernels: their source, and what they become on architectures that need not be present."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time

import pytest

from vortexlab.dsl import parse
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.dsl.testing import random_program, with_page
from vortexlab.kernels.gpu.codegen import generate
from vortexlab.kernels.gpu.coverage import uncovered
from vortexlab.kernels.gpu.modules import source_key, store_source
from vortexlab.kernels.gpu.report import TARGETS, compile_report
from vortexlab.search_spaces import load, seeds
from vortexlab.search_spaces.library import NAMES

STATIC = Static(kv_heads=8, group=4, head_dim=128, scale=128**-0.5)

ENVELOPE = """
@program(page=16)
class {name}:
    {budget} = knob.int(1, 64, default=8)

    def summarize(k):
        return dict({low}=k.min(token), {high}=k.max(token))

    def score(q, s):
        {product} = maximum(q * s.{low}, q * s.{high})
        return {product}.sum(channel).max(head)

    def select(score):
        return topk(score, {budget})
"""

#: A token by token by channel by channel value: 16 * 16 * 128 * 128 elements.
BOMB = """
@program(page=16)
class Bomb:
    def summarize(k, v):
        other = v.rename(token, other_token).rename(channel, other_channel)
        return dict(x=exp(k * other).sum(other_channel).sum(other_token).sum(token))

    def score(q, s):
        return dot(q, s.x, channel).max(head)

    def select(score):
        return topk(score, 4)
"""


def text_of(source: str, static: Static = STATIC) -> str:
    return generate(parse(source).bind(), static, "bf16", "bf16").text


def test_generated_source_holds_no_text_of_the_program():
    names = {
        "name": "Zebra", "budget": "walrus", "low": "ostrich", "high": "heron", "product": "badger",
    }  # fmt: skip
    text = text_of(ENVELOPE.format(**names))
    assert not [word for word in names.values() if word in text.lower() or word.title() in text]


def test_generated_source_depends_on_meaning_alone():
    plain = {"name": "P", "budget": "n", "low": "a", "high": "b", "product": "x"}
    other = {"name": "Q", "budget": "w", "low": "c", "high": "d", "product": "y"}
    assert text_of(ENVELOPE.format(**plain)) == text_of(ENVELOPE.format(**other))
    assert text_of(ENVELOPE.format(**plain)) != text_of(ENVELOPE.format(**plain).replace("k.max", "k.mean"))


def test_no_seed_program_is_known_to_the_kernels(repo_root):
    text = "\n".join(path.read_text().lower() for path in (repo_root / "kernels").rglob("*.py"))
    assert not [name for name in set(seeds()) - {"dense"} if re.search(rf"\b{name}\b", text)]


def test_source_is_stored_under_the_hash_of_its_content(tmp_path, monkeypatch):
    monkeypatch.setenv("VORTEX_CACHE_DIR", str(tmp_path))
    text = text_of(ENVELOPE.format(name="P", budget="n", low="a", high="b", product="x"))
    path = store_source(text)
    assert path.is_relative_to(tmp_path) and source_key(text) in path.name and path.read_text() == text
    path.write_text("broken")
    assert store_source(text).read_text() == text


def test_a_cache_folder_that_cannot_be_written_is_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VORTEX_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(VortexError, match="set VORTEX_CACHE_DIR to a folder that can be written"):
        store_source("x = 1\n")


def test_cpu_tensors_without_the_interpreter_are_refused():
    script = (
        "import torch\n"
        "from vortexlab.dsl.ir import Static\n"
        "from vortexlab.kernels.cache import PagedKV\n"
        "from vortexlab.kernels.gpu.executor import TritonExecutor\n"
        "from vortexlab.search_spaces import load\n"
        "k = torch.zeros(1, 1, 32, 16)\n"
        "TritonExecutor(load('quest').bind(), Static(1, 1, 16, 0.25)).new_state(PagedKV.from_dense(k, k, 16))\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert "VortexError: the triton executor needs a GPU; set TRITON_INTERPRET=1" in done.stderr


def test_sm_90_code_uses_tensor_cores_and_asynchronous_copies():
    found = {item.kernel: item for item in compile_report(load("centroid").bind(), STATIC, ("sm_90",))}
    assert found["attend_split"].uses == ("tensor core", "asynchronous copy")
    assert "tensor core" in found["map0"].uses  # the product of query and centroid
    assert found["choose_whole"].uses == ()  # nothing to multiply or stream there: the reading tells kernels apart
    assert all(item.registers > 0 and item.spilled_bytes == 0 for item in found.values())


@pytest.mark.parametrize("page", [16, 64])
def test_latent_keys_are_attended_on_tensor_cores_without_spills(page):
    static = Static(kv_heads=1, group=20, head_dim=576, scale=256**-0.5, latent=512)
    found = {item.kernel: item for item in compile_report(load("mla_block").bind({"page": page}), static, ("sm_90",))}
    assert found["latent_split_hopper"].uses == ("tensor core", "asynchronous copy")
    assert all(item.spilled_bytes == 0 and item.shared_bytes <= 227 << 10 for item in found.values())


def test_fp8_caches_and_summaries_compile_where_the_machine_does_not_convert_them_too():
    found = compile_report(load("quest").bind(), Static(2, 4, 64, 0.125), TARGETS, "fp8_e4m3")
    assert {item.target for item in found} == set(TARGETS)
    attention = [item for item in found if item.kernel == "attend_split" and "sm_" in item.target]
    assert len(attention) == 3 and not [item for item in attention if item.target == "sm_90" and item.spilled_bytes]


def test_an_envelope_is_scored_on_tensor_cores_too():
    source = ENVELOPE.format(name="P", budget="n", low="a", high="b", product="x")
    found = {item.kernel: item for item in compile_report(parse(source).bind(), STATIC, ("sm_90",))}
    assert "tensor core" in found["map0"].uses


def test_every_target_compiles_and_reports_its_resources():
    found = compile_report(load("sink_window").bind(), Static(2, 2, 80, 0.1), TARGETS, "fp16")
    assert {item.target for item in found} == set(TARGETS)
    for target in TARGETS:
        attention = next(item for item in found if item.target == target and item.kernel == "attend_split")
        assert 16 <= attention.registers <= 512 and attention.shared_bytes > 0 and "tensor core" in attention.uses


def test_a_program_with_enormous_tiles_is_refused_at_once():
    began = time.process_time()
    with pytest.raises(VortexError, match=r"a value of 4194304 elements .* is over the limit of 32768"):
        compile_report(parse(BOMB).bind(), STATIC, ("sm_90",))
    assert time.process_time() - began < 20


@pytest.mark.parametrize(
    ("limits", "message"),
    [({"seconds": 0.01}, "took over 0.01 s"), ({"memory_mb": 64}, r"ended with status -?\d+ \(limit 64 MB\)")],
)
def test_compiling_ends_at_its_limits(limits, message, tmp_path, monkeypatch):
    monkeypatch.setenv("VORTEX_CACHE_DIR", str(tmp_path))  # nothing is known there, so it must compile
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))  # by Triton neither
    with pytest.raises(VortexError, match=message):
        compile_report(load("quest").bind(), STATIC, ("sm_90",), **limits)


def test_reports_of_known_source_are_not_compiled_again(tmp_path, monkeypatch):
    monkeypatch.setenv("VORTEX_CACHE_DIR", str(tmp_path))
    first = compile_report(load("sink_window").bind(), STATIC, ("sm_90",))
    assert compile_report(load("sink_window").bind(), STATIC, ("sm_90",), seconds=0.01) == first
    with pytest.raises(VortexError, match="took over"):
        compile_report(load("sink_window").bind({"page": 8}), STATIC, ("sm_90",), seconds=0.01)


def test_an_unknown_target_names_the_known_ones():
    with pytest.raises(VortexError, match="unknown target 'sm_12'; choose from sm_80, sm_90, sm_100, gfx942"):
        compile_report(load("sink_window").bind(), STATIC, ("sm_12",))


def test_the_longest_chain_of_operations_is_written():
    lines = "\n".join(f"        x = x * x + {i % 7}" for i in range(60))
    source = (
        "@program(page=16)\nclass Chain:\n    def summarize(k):\n        return dict(c=k.mean(token))\n"
        f"    def score(q, s):\n        x = dot(q, s.c, channel).max(head)\n{lines}\n        return x\n"
        "    def select(score):\n        return topk(score, 4)\n"
    )
    assert text_of(source).count("# mul") == 60


@pytest.mark.slow
@pytest.mark.parametrize("first", range(7_100, 7_200, 10))
def test_hundred_random_programs_compile_for_sm_90(first):
    for number in range(first, first + 10):
        program = parse(random_program(random.Random(number))).bind()
        found = compile_report(program, Static(2, 4, 64, 0.125), ("sm_90",))
        assert {"attend_split", "attend_combine", "choose_whole", "choose_tiled"} <= {item.kernel for item in found}


LATENT = Static(kv_heads=1, group=20, head_dim=576, scale=256**-0.5, latent=512)


def published() -> list[tuple[str, int]]:
    """Every published program that the kernels cover, at pages of 16 and 64 where these divide as it asks."""
    found = []
    for name in NAMES:
        for page in (16, 64):
            try:
                bound, static = at_page(name, page)
                bound.axis_sizes(static)
            except VortexError:
                continue
            if not uncovered(bound, static):
                found.append((name, page))
    return found


def at_page(name: str, page: int) -> tuple[Program, Static]:
    bound = with_page(load(name), page).bind()
    return bound, LATENT if bound.reads_latent else STATIC


@pytest.mark.slow
@pytest.mark.parametrize(("name", "page"), published())
def test_published_programs_compile_everywhere_and_without_spills_on_sm_90(name: str, page: int):
    found = compile_report(*at_page(name, page), TARGETS, seconds=900)
    assert {item.target for item in found} == set(TARGETS)
    assert not [item for item in found if item.target == "sm_90" and item.spilled_bytes]


def test_most_published_programs_have_kernels():
    covered = {name for name, _ in published()}
    assert len(covered) >= 35 and {"quest", "mla_block", "block_sparse"} <= covered
