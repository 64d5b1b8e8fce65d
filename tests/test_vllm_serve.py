"""`vllm serve` with an exported plugin, asked through the OpenAI client by many at once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from transformers import AutoTokenizer

from tests.test_deploy_serving import ANSWER, harness_task, needs, questions
from vortexlab.deploy import package
from vortexlab.deploy.install import install
from vortexlab.dsl.ir import Program
from vortexlab.evaluator.config import PROMPT_DENSE, REFERENCE_MODEL, EvaluationConfig
from vortexlab.evaluator.models import load_model
from vortexlab.evaluator.record import answers
from vortexlab.evaluator.samples import Suite, make_suite
from vortexlab.evaluator.statistics import accuracy
from vortexlab.search_spaces.library import load

PYTHON = Path(__file__).resolve().parents[1] / ".venv-vllm/bin/python"
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not PYTHON.exists(), reason="vLLM is not installed; run `make test-vllm`"),
]
QUEST = load("quest").bind({"page": 16, "budget": 8})
EVERYTHING = load("dense").bind()
TASKS, LENGTHS = ("needle", "keys", "multivalue", "chain"), (256, 320, 384, 512)
#: Blocks of 32 tokens: 32 requests of 11 to 20 blocks do not fit together, whatever they share.
TIGHT = ("--num-gpu-blocks-override", "90", "--block-size", "32")


@contextmanager
def serving(folder: Path, program: Program | None, *words: str) -> Iterator[OpenAI]:
    """A server of the reference model in float32; `program` None for vLLM's own attention."""
    site = folder / "site"
    site.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if program is not None:
        written = package.write(
            program, folder / "package", engine="vllm", version="0.1.0", knobs={}, source=program.source,
            measurements={}, selftest={"cases": []},
        )  # fmt: skip
        install(folder / "package", site, str(PYTHON))
        settings = folder / "pattern.json"
        settings.write_text(json.dumps({"program": written.module, "stats": "stats.json"}))
        words = ("--additional-config", json.dumps({"vortex": str(settings)}), *words)
    paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    log = (folder / "log").open("w")
    command = [
        PYTHON.with_name("vllm"), "serve", str(REFERENCE_MODEL), "--served-model-name", "reference",
        "--port", str(port), "--dtype", "float32", "--max-model-len", "640", "--enforce-eager", "--max-num-seqs", "32",
        "--max-num-batched-tokens", "512", "--seed", "0", "--enable-prefix-caching", *words,
    ]  # fmt: skip
    server = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True,
        env={**os.environ, "PYTHONPATH": paths, "VLLM_CPU_KVCACHE_SPACE": "1"},
    )  # fmt: skip
    try:
        for _ in range(600):
            assert server.poll() is None, (folder / "log").read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=1200)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)
        log.close()


def suite() -> Suite:
    """40 questions of ragged lengths; those of one context share a prefix."""
    config = EvaluationConfig(tasks=TASKS, lengths=LENGTHS, contexts=1, turns=3)
    return make_suite(config)


def prompts(asked: Suite) -> list[tuple[list[int], int]]:
    return [
        ([*asked.samples[i].context, *asked.turn(row).question], asked.turn(row).generated)
        for row, (i, _) in enumerate(asked.forks)
    ]


def ask(client: OpenAI, rows: list[tuple[list[int], int]], together: int, more: int = 0) -> list[list[int]]:
    """Token ids of greedy answers, `more` beyond what is asked; so many requests are under way at a time."""

    def one(row: tuple[list[int], int]) -> list[int]:
        found = client.completions.create(
            model="reference", prompt=row[0], max_tokens=row[1] + more, temperature=0.0,
            extra_body={"return_token_ids": True, "ignore_eos": True},
        )  # fmt: skip
        return list(found.choices[0].token_ids)  # type: ignore[attr-defined]

    with ThreadPoolExecutor(together) as pool:
        return list(pool.map(one, rows))


def metric(client: OpenAI, name: str) -> float:
    """The sum of a counter of the server."""
    text = urllib.request.urlopen(str(client.base_url).removesuffix("v1/") + "metrics").read().decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def test_answers_are_those_of_the_evaluator(tmp_path: Path) -> None:
    """Under the protocol that the engine runs: accuracy kept within the evaluator's interval; and read as declared."""
    asked = suite()
    rows = prompts(asked)
    with serving(tmp_path / "dense", None) as client:
        dense = ask(client, rows, 8)
    with serving(tmp_path / "sparse", QUEST) as client:
        sparse = ask(client, rows, 8)
    model = load_model(str(REFERENCE_MODEL))
    expected = answers(QUEST, model, asked.contexts(), PROMPT_DENSE)
    kept = []
    for whole, part in (expected, (dense, sparse)):
        chosen = range(len(rows))
        found = asked.outcomes(asked.scores(chosen, whole), asked.scores(chosen, part), TASKS)
        kept.append(accuracy(found).kept)
    evaluator, engine = kept
    assert evaluator is not None and engine is not None and evaluator.low <= engine.value <= evaluator.high
    assert sum(a == b for a, b in zip(sparse, expected[1], strict=True)) >= 0.9 * len(rows)
    stats: dict[str, Any] = json.loads((tmp_path / "sparse" / "stats.json").read_text())
    assert stats["sparse_steps"] > 0 == stats["dense_steps"] and 0 < stats["density"] < 0.9


@pytest.mark.parametrize("program", [EVERYTHING, QUEST], ids=["everything", "quest"])
def test_many_at_once_with_preemptions_get_their_own_answers(program: Program, tmp_path: Path) -> None:
    """Ragged requests with shared prefixes where they do not fit: everything selected is vLLM's own attention token
    for token; a sparse program answers what it answers alone, as far as it was right."""
    asked = suite()
    rows = prompts(asked)
    assert len(rows) >= 32
    with serving(tmp_path / "alone", None if program is EVERYTHING else program) as client:
        alone = ask(client, rows, 1, more=90)
    with serving(tmp_path / "crowd", program, *TIGHT) as client:
        crowd = ask(client, rows, 32, more=90)
        assert metric(client, "vllm:num_preemptions_total") > 0 and metric(client, "vllm:prefix_cache_hits_total") > 0
        again = ask(client, rows, 32, more=90)
    if program is EVERYTHING:
        assert crowd == alone == again
        return
    cut = [[answer[:count] for answer, (_, count) in zip(found, rows, strict=True)] for found in (alone, crowd, again)]
    right = [asked.scores(range(len(rows)), answers_) for answers_ in cut]
    for row in range(len(rows)):
        assert right[1][row] >= right[0][row] and right[2][row] >= right[0][row], (row, cut[0][row], cut[1][row])


@pytest.mark.slow
def test_lm_evaluation_harness_asks_the_server(tmp_path: Path) -> None:
    """Unpatched, through the completions endpoint: its answers are those of the same prompts asked directly."""
    needs("lm_eval", "tenacity", "aiohttp")
    from lm_eval import simple_evaluate
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    asked = questions()
    tokenizer = AutoTokenizer.from_pretrained(REFERENCE_MODEL)
    task = harness_task(tmp_path / "test.jsonl", tokenizer, asked)
    bare = [{"function": "remove_whitespace"}, {"function": "take_first"}]
    task["filter_list"] = [{"name": "bare", "filter": bare}]
    with serving(tmp_path / "server", QUEST) as client:
        harness = LocalCompletionsAPI(
            model="reference", base_url=f"{client.base_url}completions", tokenizer=str(REFERENCE_MODEL),
            num_concurrent=4, max_length=640, eos_string="<unk>",
        )  # fmt: skip
        found = simple_evaluate(model=harness, tasks=[task], log_samples=True, bootstrap_iters=0)
        direct = ask(client, [(prompt, ANSWER) for prompt, _ in asked], 4)
    samples = sorted(found["samples"]["multivalue"], key=lambda item: item["doc_id"])
    assert [item["resps"][0][0].strip() for item in samples] == [tokenizer.decode(answer).strip() for answer in direct]
    right = [answer == wanted for answer, (_, wanted) in zip(direct, asked, strict=True)]
    assert found["results"]["multivalue"]["exact_match,bare"] == pytest.approx(sum(right) / len(right))
    assert any(right)
