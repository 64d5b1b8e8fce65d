"""Timing whole decode steps: the parts are those of real steps, bytes are counted right, the benchmark goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Static
from vortexlab.evaluator.decode_layers import DecodeModel
from vortexlab.evaluator.decode_models import StepBytes, published_config, random_model
from vortexlab.evaluator.decode_runner import Caches, DecodeRunner, ProgramReader
from vortexlab.evaluator.decode_times import (
    attention_bytes,
    ideal_ms,
    predicted_step,
    random_tokens,
    room_needed,
    selected_pages,
    time_step,
)
from vortexlab.kernels.devices import get_device
from vortexlab.search_spaces import load

QUEST = load("quest").bind({"page": 16, "budget": 125, "sink": 1, "recent": 2})


def made_runner(capacity: int = 128) -> DecodeRunner:
    config = published_config("qwen3-1.7b", small=True)
    model = DecodeModel.of(random_model(config, "cpu", torch.float32, 1), capacity)
    caches = Caches.empty(model.statics(), 2, capacity, "cpu", torch.float32, block=16)
    caches.fill(90, 2)
    program = load("quest").bind({"page": 8, "budget": 4, "recent": 1})
    return DecodeRunner(model, caches, ProgramReader(program, model.statics(), caches))


def test_timing_takes_the_steps_of_its_random_tokens_and_no_others() -> None:
    timed, plain = made_runner(), made_runner()
    times = time_step(timed, 6)
    for tokens in random_tokens(plain, 7):
        plain.tokens.copy_(tokens)
        plain.step()
    assert torch.equal(timed.caches.lengths, plain.caches.lengths)
    torch.testing.assert_close(timed.step(), plain.step())
    assert times.layers == 2 and times.steps == 6
    assert times.context == pytest.approx(94.5)  # the six timed steps read 92 to 97 tokens
    assert min(times.step_ms, times.attention_ms, times.product_ms, times.rest_ms) > 0
    assert times.rest_us_a_layer == pytest.approx(1e3 * times.rest_ms / 2)
    parts = times.attention_ms + times.product_ms + times.rest_ms
    assert times.unexplained_us_a_layer == pytest.approx(1e3 * (times.step_ms - parts) / 2)


def test_products_and_queries_are_noted_only_while_timing() -> None:
    runner = made_runner()
    time_step(runner, 2)
    assert runner.products.seen is None and runner.queries is None and runner.products.known is None


def test_a_cache_without_room_is_refused() -> None:
    runner = made_runner()
    runner.caches.lengths.fill_(128 - room_needed(5) + 1)
    with pytest.raises(VortexError, match="timing 5 steps needs room for 10 tokens; there is 9"):
        time_step(runner, 5)


def test_pages_read_are_those_of_the_lists() -> None:
    runner = made_runner()
    runner.step()
    reader = runner.reader
    assert isinstance(reader, ProgramReader)
    own = 91 - 88  # tokens of the own page
    assert selected_pages(runner.caches, reader.lists, 8) == pytest.approx((8 + 8 * 4 + own) / 8)


def test_bytes_are_those_of_the_roofline() -> None:
    """Qwen3-1.7B, 32 x 32,768 tokens, Quest with 128 pages of 16: per layer, in bf16."""
    h200, static = get_device("h200"), Static(8, 2, 128, 128**-0.5)
    whole = 2 * 32 * 8 * 32768 * 128 * 2
    assert attention_bytes(None, static, 32768, 32, h200) == whole
    sparse = attention_bytes(QUEST, static, 32768, 32, h200, 128.0)
    assert sparse == pytest.approx(whole * (2048 / 32768 + 2 / 32), rel=0.01)
    # 3.44 GB of weights and 120 GB of keys and values at 4.6 TB/s.
    assert ideal_ms(3.44e9, whole, 28, h200) == pytest.approx(26.9, rel=0.01)


def test_latent_keys_are_read_once() -> None:
    static = Static(1, 20, 576, 256**-0.5, latent=512)
    assert attention_bytes(None, static, 1000, 3, get_device("h200")) == 3 * 1000 * 576 * 2


def test_a_predicted_step_is_labelled_and_adds_up() -> None:
    weights = StepBytes(weights=8_000_000_000, expert=10_000_000, total=64, per_token=4, expert_layers=60)
    found = predicted_step(QUEST, Static(2, 6, 128, 128**-0.5, 0, 62), 62, weights, 32768, 32, 4, "h200")
    assert found["kind"] == "predicted" and found["left_out"]
    assert found["product_ms"] == pytest.approx(1e3 * weights.read(32) / 4 / get_device("h200").read)
    assert found["speedup"] == pytest.approx(found["dense_ms"] / found["step_ms"]) and found["speedup"] > 2


@pytest.fixture(scope="module")
def rehearsal(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The benchmark on tiny models, and a command that goes on with it."""
    folder = tmp_path_factory.mktemp("rehearsal")
    command = [sys.executable, str(repo_root / "benchmarks" / "end_to_end.py"), "--rehearse", "--out", str(folder)]
    command += ["--only", "glm-4.7-flash", "--only", "minimax-m2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "rehearsal.json", command


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a GPU does is measured there")
def test_the_benchmark_writes_every_row_with_its_conditions(rehearsal: tuple[Path, list[str]]) -> None:
    rows = json.loads(rehearsal[0].read_text())["rows"]
    names = {(row["model"], row["program"]) for row in rows}
    glm = ["check", "dense", "mla_block P16", "mla_block P64", "mla_subpage P64"]
    assert {("glm-4.7-flash", name) for name in glm} <= names
    for kind in ("predicted", "shard"):
        assert ("minimax-m2", f"{kind} quest P64") in names
    assert not [row for row in rows if "error" in row]
    for row in rows:
        assert row["torch"] == torch.__version__ and row["seed"] == 0
        assert row["program"] == "check" or row["kind"] == (
            "predicted" if "predicted" in row["program"] else "measured"
        )
        if row["model"] == "glm-4.7-flash" and row["program"] != "check":
            assert row["rehearsal"] and row["finite"] and row["weights"] == "random" and row["batch"] == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a GPU does is measured there")
def test_the_benchmark_measures_only_what_is_missing(rehearsal: tuple[Path, list[str]]) -> None:
    path, command = rehearsal
    rows = json.loads(path.read_text())["rows"]
    kept = [row for row in rows if row["program"] not in ("mla_block P64", "check")]
    path.write_text(json.dumps({"rows": kept}))
    subprocess.run(command, capture_output=True, check=True)
    after = {(row["model"], row["program"]): row for row in json.loads(path.read_text())["rows"]}
    assert len(after) == len(rows)
    anew = {key for key, row in after.items() if row not in kept}
    measured = {name for model, name in anew if model == "glm-4.7-flash"}
    assert measured == {"check", "dense", "mla_block P64"}
    assert not [name for model, name in anew if name.startswith("shard")]
