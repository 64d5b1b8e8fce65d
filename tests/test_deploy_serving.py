"""Who calls `generate` by itself: ``transformers serve`` and lm-evaluation-harness, neither of which knows of patterns.

Both run on the shipped model, on the CPU. They need packages that are not among this project's: without them the tests
are skipped, and say what is missing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_fixtures import CARRIES, QUEST, program, small_model, tiny, tokens
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from vortexlab.deploy import package, selftest
from vortexlab.deploy.huggingface import serve
from vortexlab.deploy.huggingface.pattern import Pattern
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program
from vortexlab.evaluator.config import REFERENCE_MODEL
from vortexlab.evaluator.models import load_model
from vortexlab.evaluator.record import record
from vortexlab.evaluator.tasks import make_samples

MODEL = str(REFERENCE_MODEL)
#: So few pages that answers are not those of dense attention.
FEW = program(
    "    def summarize(k):\n        return dict(c=k.mean(token))\n"
    "    def score(q, s):\n        return dot(q, s.c, channel).max(head)\n"
    "    def select(score):\n        return topk(score, 2) | last(1)\n"
)
ANSWER = 6  # tokens of an answer of `multivalue`


def needs(*modules: str) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def export(program: Program, folder: Path, engine: str = "transformers") -> package.Package:
    more: dict[str, Any] = {"version": "0.1.0", "knobs": {}, "source": "", "measurements": {}, "selftest": {}}
    return package.write(program, folder, engine=engine, **more)


def questions() -> list[tuple[list[int], list[int]]]:
    """Prompts of two lengths, so that batches are padded, and the expected answers, as token ids."""
    samples = make_samples("multivalue", 512, 3) + make_samples("multivalue", 450, 3)
    return [([*item.context, *item.turns[0].question], list(item.turns[0].answer)) for item in samples]


def test_a_package_is_found_by_its_folder_and_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    written = export(QUEST, tmp_path / "out")
    assert serve.find(str(tmp_path / "out")).program == QUEST
    assert serve.find(written.module).name == written.module
    export(QUEST, tmp_path / "other", "vllm")
    for name, message in (
        (str(tmp_path / "other"), "is for vllm; export it --to transformers"),
        (str(tmp_path), "holds no exported package"),
        ("no_such_module", "no folder and no module 'no_such_module'"),
        ("json", "json is no package for transformers"),
    ):
        with pytest.raises(VortexError, match=message):
            serve.find(name)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "say which: python -m"),
        (["--port", "1"], "say which: python -m"),
        (["out", "--attn-implementation=sdpa"], "the attention is the pattern's"),
        (["out", "model", "--continuous-batching"], "runs attention functions and a cache of its own"),
        (["out", "model", "--compile"], "not compileable"),
    ],
)
def test_the_launcher_refuses_what_would_leave_the_pattern_out(arguments: list[str], message: str) -> None:
    with pytest.raises(VortexError, match=message):
        serve.serve(arguments)


def test_models_of_the_server_run_the_pattern(tmp_path: Path) -> None:
    """Whatever loads models gets them with the pattern, and no architecture that it cannot run in."""

    class Loading:
        """What the launcher relies on of transformers' model manager."""

        trust_remote_code = False

        def __init__(self) -> None:
            self.loaded_models: dict[str, Any] = {}

        def load_model_and_processor(self, name: str) -> tuple[Any, None]:
            if name not in self.loaded_models:
                self.loaded_models[name] = AutoModelForCausalLM.from_pretrained(name.split("@")[0])
            return self.loaded_models[name], None

    small_model().save_pretrained(tmp_path / "model")
    pattern = Pattern(CARRIES, "served")
    loading = serve.manager(Loading, pattern)()
    model = None
    for _ in range(2):
        model, _ = loading.load_model_and_processor(f"{tmp_path / 'model'}@main")
    model.generate(tokens(140), max_new_tokens=4)
    assert 0 < (pattern.density(model) or 0) < 1
    tiny(use_sliding_window=True, sliding_window=8, max_window_layers=0).save_pretrained(tmp_path / "sliding")
    with pytest.raises(VortexError, match="layers of kind sliding_attention"):
        loading.load_model_and_processor(f"{tmp_path / 'sliding'}@main")  # there are no weights


def test_the_launcher_replaces_what_transformers_loads_models_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this release the manager is where the launcher looks for it; what the server lacks is said in one line."""
    from transformers.cli import serve as command
    from transformers.cli.serving import model_manager

    stock = model_manager.ModelManager
    monkeypatch.setattr(model_manager, "ModelManager", stock)  # put back at the end
    monkeypatch.setattr(command, "is_serve_available", lambda: False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    export(QUEST, tmp_path / "out")
    with pytest.raises(VortexError, match="transformers serve cannot start: Missing dependencies for serving"):
        serve.serve([str(tmp_path / "out"), "--port", "1"])
    assert issubclass(model_manager.ModelManager, stock) and model_manager.ModelManager is not stock


def test_a_pipeline_runs_the_pattern_in_padded_batches() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    pattern = Pattern(FEW, "in_a_pipeline")
    model = pattern.load(MODEL, dtype=torch.float32)
    asked = [questions()[0][0], questions()[3][0]]
    writer = pipeline("text-generation", model=model, tokenizer=tokenizer)
    more: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    found = writer([tokenizer.decode(ids) for ids in asked], batch_size=2, return_full_text=False, **more)
    for ids, answers in zip(asked, found, strict=True):
        alone = model.generate(torch.tensor([ids]), **more)[0, len(ids) :]
        assert answers[0]["generated_text"].strip() == tokenizer.decode(alone)
    assert 0 < (pattern.density(model) or 0) < 0.2


def launcher(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "vortexlab.deploy.huggingface.serve", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.mark.slow
def test_transformers_serve_answers_with_the_pattern(tmp_path: Path) -> None:
    needs("fastapi", "uvicorn", "accelerate", "openai")
    export(FEW, tmp_path / "out")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    options = ("--device", "cpu", "--dtype", "float32", "--port", port)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    prompt = questions()[0][0]
    body = {"model": MODEL, "prompt": tokenizer.decode(prompt), "max_tokens": 12, "temperature": 0}
    log = (tmp_path / "log").open("w+")
    server = subprocess.Popen(
        launcher(tmp_path / "out", MODEL, *options), stdout=log, stderr=subprocess.STDOUT, env=environment()
    )
    try:
        _until_up(server, port, log.name)
        answer = _post(port, body)["choices"][0]["text"]
    finally:
        server.terminate()
        server.wait(timeout=60)
        log.close()
    pattern = Pattern(FEW, "served_here")
    more: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
    model = pattern.load(MODEL, dtype=torch.float32)
    ids = torch.tensor([prompt])
    assert answer == tokenizer.decode(model.generate(ids, **more)[0, len(prompt) :])
    model.set_attn_implementation("sdpa")
    assert answer != tokenizer.decode(model.generate(ids, **more)[0, len(prompt) :])


def _until_up(server: subprocess.Popen[bytes], port: int, log: str) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://localhost:{port}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the server did not start: {Path(log).read_text()[-2000:]}")


def _post(port: int, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"http://localhost:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as reply:
        return json.load(reply)


def harness_task(file: Path, tokenizer: Any, asked: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
    """The questions as a task of lm-evaluation-harness, whose rows go into `file`."""
    rows = [{"prompt": tokenizer.decode(prompt), "answer": tokenizer.decode(answer)} for prompt, answer in asked]
    file.write_text("\n".join(map(json.dumps, rows)))
    return {
        "task": "multivalue", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test", "output_type": "generate_until", "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}", "metric_list": [{"metric": "exact_match"}],
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": ANSWER},
    }  # fmt: skip


@pytest.mark.slow
def test_lm_evaluation_harness_measures_the_pattern(tmp_path: Path) -> None:
    """Its answers, in padded batches, are those of the evaluator's replay after a prompt that is read densely whole."""
    needs("lm_eval", "accelerate")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    # The harness wants an end of text, which the shipped tokenizer does not have.
    tokenizer = AutoTokenizer.from_pretrained(MODEL, eos_token="<unk>")
    asked = questions()
    task = harness_task(tmp_path / "test.jsonl", tokenizer, asked)
    pattern = serve.find(str(export(FEW, tmp_path / "out").root))
    model = pattern.load(MODEL, dtype=torch.float32)

    def measured() -> tuple[list[str], float]:
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
        found = simple_evaluate(model=harness, tasks=[task], log_samples=True, bootstrap_iters=0)
        samples = sorted(found["samples"]["multivalue"], key=lambda item: item["doc_id"])
        return [item["resps"][0][0] for item in samples], found["results"]["multivalue"]["exact_match,none"]

    answers, accuracy = measured()
    density = pattern.density(model)
    loaded = load_model(MODEL)
    expected = []
    for prompt, _ in asked:
        with torch.inference_mode():
            model.set_attn_implementation("sdpa")
            first = int(model(torch.tensor([prompt])).logits[0, -1].argmax())
        case = {"context": prompt, "question": [first], "length": ANSWER - 1}
        expected.append([first, *record(FEW, loaded, [case], selftest.sketch)[0]["answer"]])
    assert answers == [tokenizer.decode(answer) for answer in expected]
    right = [found == wanted for found, (_, wanted) in zip(expected, asked, strict=True)]
    assert accuracy == pytest.approx(sum(right) / len(right))
    dense, dense_accuracy = measured()
    assert dense != answers and dense_accuracy > accuracy
    assert density is not None and density < 0.2 and pattern.density(model) == density
