"""Export and verification: the deployed pattern computes what the evaluator measured, or the answer is no."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from face_fixtures import record as record_campaign
from face_fixtures import vortex
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from vortexlab import benching, exporting
from vortexlab.agent.run import Run
from vortexlab.deploy import package, selftest
from vortexlab.deploy.huggingface.pattern import Pattern
from vortexlab.dsl import canonical_hash, parse
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program
from vortexlab.dsl.parameters import Parameters
from vortexlab.evaluator import speed
from vortexlab.evaluator.config import REFERENCE_MODEL, EvaluationConfig
from vortexlab.evaluator.geometries import find_geometry
from vortexlab.evaluator.models import LoadedModel, load_model
from vortexlab.evaluator.record import record
from vortexlab.evaluator.speed import Timing
from vortexlab.kernels.torch_executor import TorchExecutor
from vortexlab.search_spaces.library import load

LENGTH = 512
PER_HEAD = parse("""
@program(page=8)
class PerHead:
    def summarize(k, v):
        return dict(c=k.mean(token), e=v.norm(channel).max(token))
    def score(q, s):
        return dot(q, s.c, channel) + s.e
    def select(score, ctx):
        return topk(score, ctx.pages // 4 + ctx.layer) | last(2)
""").bind()
CARRIES = parse("""
@program(page=8)
class Carries:
    mass = memory.step(page, every=3)
    kept = memory.step(pages)
    below = memory.layer(page)

    def summarize(k): return dict(c=k.mean(token))
    def score(q, s, m): return dot(q, s.c, channel).max(head) + m.mass + m.below
    def select(score, m, ctx):
        return last(2) | m.kept | reuse(topk(score, 2), layers=ctx.layer == 0) | reuse(topk(score, 3), every=4)
    def remember(q, s, score, m):
        return dict(mass=0.5 * m.mass + softmax(score, page), below=s.c.max(channel), kept=topk(score, 1))
""").bind()
LEARNED = parse("""
@program(page=8, summaries="fp8_e4m3")
class Learned:
    importance = param(channel)
    gate = param(head, channel, per_kv_head=True)

    def summarize(k, v): return dict(c=k.mean(token) * importance, v=v.mean(token))
    def score(q, s): return dot(q, s.c, channel).max(head)
    def select(score): return topk(score, 4, among=~last(1)) | last(1)
    def attend(q, s, pages):
        return sigmoid(dot(q, gate, channel)) * attention(pages, keys=s.c, values=s.v, among=~pages)
""")
PROGRAMS = {
    "carries": CARRIES, "quest": load("quest").bind({"budget": 4}), "top_p": load("top_p").bind(), "per_head": PER_HEAD,
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of the reference model's vocabulary, on disk."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=1024, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=2048, eos_token_id=None, bos_token_id=0,
        pad_token_id=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny")
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tiny: Path) -> LoadedModel:
    return load_model(str(tiny))


def questions(count: int = 2) -> list[dict[str, Any]]:
    """Contexts that end inside a page; question and answer cross several page boundaries."""
    draw = torch.Generator().manual_seed(7)
    return [
        {
            "context": torch.randint(1, 1024, (150 + 7 * i,), generator=draw).tolist(),
            "question": torch.randint(1, 1024, (37,), generator=draw).tolist(),
            "length": 12,
        }
        for i in range(count)
    ]


def engine(program: Program, folder: Path, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    pattern = Pattern(program, f"verified_{program.name}")
    loaded = Qwen3ForCausalLM.from_pretrained(folder, attn_implementation=pattern.register()).eval()
    return selftest.run(pattern, loaded, cases)


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_engine_and_evaluator_agree(name: str, model: LoadedModel, tiny: Path) -> None:
    """They share the executor and nothing else: cache, growth, summaries on the way, and feeding are each its own."""
    cases = record(PROGRAMS[name], model, questions(), selftest.sketch)
    assert all(0 < case["density"] < 0.9 for case in cases)
    found = selftest.judge(cases, engine(PROGRAMS[name], tiny, cases), "float32")
    assert found["ok"] and found["steps"] == 24, found
    assert found["worst_logit_difference"] < 1e-4 and found["density_difference"] < 1e-9


def test_a_program_with_parameters_agrees_too(model: LoadedModel, tiny: Path, tmp_path: Path) -> None:
    """Exported with its file, which is then gone: what runs is the package's own copy."""
    file = tmp_path / "learned.safetensors"
    draw = torch.Generator().manual_seed(2)
    save_file(
        {"importance": torch.rand(2, 16, generator=draw), "gate": torch.randn(2, 2, 2, 16, generator=draw)}, file
    )
    bound = LEARNED.bind({}, Parameters.open(file))
    cases = record(bound, model, questions(), selftest.sketch)
    assert all(0 < case["density"] < 0.9 for case in cases)
    more: dict[str, Any] = {"version": "0.1.0", "knobs": {}, "source": "", "measurements": {}, "selftest": {}}
    held = package.write(bound, tmp_path / "out", engine="transformers", **more).program
    file.unlink()
    found = selftest.judge(cases, engine(held, tiny, cases), "float32")
    assert found["ok"] and found["worst_logit_difference"] < 1e-4, found
    other = LEARNED.bind({}, _shifted(tmp_path))
    assert not selftest.judge(cases, engine(other, tiny, cases), "float32")["ok"]


def _shifted(folder: Path) -> Parameters:
    file = folder / "shifted.safetensors"
    save_file({"importance": torch.ones(2, 16), "gate": torch.full((2, 2, 2, 16), -3.0)}, file)
    return Parameters.open(file)


@pytest.mark.parametrize("fault", ["chunk", "forgotten"])
def test_faults_in_what_is_carried_are_found(
    fault: str, model: LoadedModel, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vortexlab.deploy.huggingface import cache as engine_cache

    cases = record(CARRIES, model, questions(), selftest.sketch)
    if fault == "chunk":  # every layer begins with nothing from below
        monkeypatch.setattr(engine_cache.Chunk, "begin", lambda self, layer: self.carries.clear())
        with pytest.raises(VortexError, match="no layer below it has computed"):
            engine(CARRIES, tiny, cases)
        return
    monkeypatch.setattr(engine_cache, "executor_for", lambda *_: _Amnesiac)
    assert not selftest.judge(cases, engine(CARRIES, tiny, cases), "float32")["ok"]


@pytest.mark.parametrize("fault", ["update", "length", "layer", "program"])
def test_faults_in_the_engine_are_found(
    fault: str, model: LoadedModel, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vortexlab.deploy.huggingface import cache as engine_cache

    cases = record(PER_HEAD, model, questions(), selftest.sketch)
    deployed = PER_HEAD
    if fault == "update":
        monkeypatch.setattr(engine_cache, "executor_for", lambda *_: _Forgetful)
    elif fault == "length":
        monkeypatch.setattr(engine_cache, "executor_for", lambda *_: _Short)
    elif fault == "layer":
        real = engine_cache.PagedLayer.__init__
        monkeypatch.setattr(
            engine_cache.PagedLayer,
            "__init__",
            lambda self, found, layer, *more: real(self, found, 0, *more),
        )
    else:
        deployed = PROGRAMS["quest"]
    assert not selftest.judge(cases, engine(deployed, tiny, cases), "float32")["ok"]


class _Forgetful(TorchExecutor):
    def update(self, state: Any, cache: Any) -> None:
        """Pages that fill up on the way are never summarised."""


class _Amnesiac(TorchExecutor):
    def decode(self, q: Any, state: Any, cache: Any, memory: Any = None) -> Any:
        """Every step is a request's first one."""
        memory.reset()
        return super().decode(q, state, cache, memory)


class _Short(TorchExecutor):
    def decode(self, q: Any, state: Any, cache: Any) -> Any:
        """Misses the newest token."""
        cache.lengths -= 1
        try:
            return super().decode(q, state, cache)
        finally:
            cache.lengths += 1


def case(values: list[list[float]], answer: list[int], density: float = 0.25) -> dict[str, Any]:
    sketches = [selftest.sketch(torch.tensor(row)) for row in values]
    return {"answer": answer, "logits": sketches, "density": density}


def test_judge_says_no_to_each_kind_of_difference() -> None:
    one = case([[4.0, 1.0, 0.0], [0.0, 3.0, 1.0]], [0, 1])
    assert selftest.judge([one], [one], "float32")["ok"]
    off = case([[4.0, 1.1, 0.0], [0.0, 3.0, 1.0]], [0, 1])
    # Log-probabilities are compared: 0.1 less what the sum over the vocabulary took.
    worst = 0.1 - float(torch.tensor([4.0, 1.1, 0.0]).logsumexp(0) - torch.tensor([4.0, 1.0, 0.0]).logsumexp(0))
    assert selftest.judge([one], [off], "float32")["worst_logit_difference"] == pytest.approx(worst / 2.0817, rel=1e-3)
    assert not selftest.judge([one], [off], "float32")["ok"] and selftest.judge([one], [off], "bfloat16")["ok"]
    for other in (
        {**one, "answer": [0, 2]},
        {**one, "density": 0.27},
        {**one, "density": float("nan")},
        case([[4.0, float("nan"), 0.0], [0.0, 3.0, 1.0]], [0, 1]),
    ):
        assert not selftest.judge([one], [other], "float32")["ok"], other
    assert not selftest.judge([], [], "float32")["ok"]
    # Answers that part at a draw are no difference, and what follows is not compared.
    draw = case([[2.0, 2.0, 0.0], [0.0, 3.0, 1.0]], [0, 1])
    assert selftest.judge([draw], [{**draw, "answer": [1, 2]}], "float32")["ok"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(runs, package): trial t0011 of a campaign, on the reference model with short contexts."""
    runs = tmp_path_factory.mktemp("runs")
    settings = EvaluationConfig(lengths=(LENGTH,), tasks=("needle", "chain"), threads=1)
    record_campaign(runs, "a", 12, evaluation=settings)
    out = runs / "out"
    words = ("--to", "transformers", "--out", out, "--cases", "2", "--runs", runs, "--json")
    found = vortex("export", "a", "t0011", *words).json("export")
    assert (found["id"], found["cases"], found["folder"]) == ("t0011", 2, str(out))
    return runs, out


def test_export_holds_the_winner_and_nothing_of_the_campaign(exported: tuple[Path, Path]) -> None:
    runs, out = exported
    shown = vortex("show", "a", "t0011", "--runs", runs, "--json").json("show")
    found = package.read(out)
    assert found.manifest["program_hash"] == shown["hash"] and found.manifest["knobs"] == shown["knobs"]
    assert found.manifest["measurements"]["speedup"] == shown["verdict"]["speedup"]
    for kind in ("cases", "served"):
        assert [item["task"] for item in found.selftest[kind]] == ["needle", "chain"]
    other = found.manifest["measurements"]["other_protocol"]
    assert other["protocol"] == "prompt-dense" and 0 < other["accuracy"]["value"] <= 1 and other["answers"] > 0
    assert f"prompt-dense: {other['accuracy']['value']:.3f} of dense accuracy kept" in (out / "README.md").read_text()
    assert all(len(item["context"]) == LENGTH for item in found.selftest["cases"])
    text = "".join(file.read_text() for file in out.rglob("*") if file.is_file())
    assert str(runs) not in text and REFERENCE_MODEL.as_posix() not in text


def test_an_export_measures_the_gate_and_the_package_decodes_by_it(
    exported: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, plain = exported
    assert package.read(plain).gate is None
    measured: list[Any] = []

    def never_faster(*words: Any, **more: Any) -> Timing:
        """Dense is twice as fast: a clock that answers as the test says."""
        measured.append(more["seed"])
        return Timing(ratios=[0.5] * 9, batch=words[2].batch)

    monkeypatch.setattr(speed, "measure", never_faster)
    monkeypatch.setattr(benching, "GATE_CONTEXTS", (256, LENGTH))
    words = ("export", "a", "t0011", "--cases", "2", "--runs", runs, "--one-protocol", "--gate", "--out")
    found = vortex(*words, tmp_path / "out", "--json").json("export")
    gate = package.read(tmp_path / "out").gate
    assert gate is not None and found["gate"] == gate.to_json() and len(measured) == 4
    assert gate.opens == {1: None, 4: None} and {item.context for item in gate.ratios} == {256, LENGTH}
    assert "batch 1: never sparse; batch 4: never sparse" in vortex(*words, tmp_path / "out").out
    # The package decodes by it, and its self-test does not.
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); "
        f"import {found['module']} as pattern; from transformers import AutoModelForCausalLM as Auto; "
        "model = Auto.from_pretrained(sys.argv[2], attn_implementation=pattern.NAME).eval(); "
        "cache = pattern.cache(model.config); ids = torch.arange(1, 513)[None]; "
        "model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=4); "
        "print(pattern.density(cache))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out"), str(REFERENCE_MODEL)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.split()[-1:] == ["1.0"], done.stderr
    verified = vortex("verify", tmp_path / "out", "--json")
    assert verified.status == 0 and verified.json("verify")["density"] < 1

    def wrong(*_: Any, **__: Any) -> Timing:
        raise speed.SpeedError("a timed output is off by 0.5 of its norm")

    monkeypatch.setattr(speed, "measure", wrong)
    assert "at batch 1, context 256, a timed output is off" in vortex(*words, tmp_path / "none").complaint()
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_exported(exported: tuple[Path, Path]) -> None:
    runs, _ = exported
    assert "cannot export to 'tgi'" in vortex("export", "a", "t0011", "--to", "tgi", "--runs", runs).complaint()
    occupied = runs / "occupied"
    occupied.mkdir()
    (occupied / "thesis.tex").write_text("")
    assert "thesis.tex" in vortex("export", "a", "t0011", "--out", occupied, "--runs", runs).complaint()
    opened = Run.open("a", runs)
    trial = opened.history.find("t0011")
    assert trial.verdict is not None
    refused = replace(trial.verdict, status="rejected", gate="numerics", reason="two plus two is five")
    opened.history.trials[trial.slot] = replace(trial, verdict=refused)
    with pytest.raises(VortexError, match="rejected by gate numerics: two plus two is five; choose one from"):
        exporting.export_member(opened, "t0011", "transformers", runs / "refused")
    assert not (runs / "refused").exists()
    assert "is a file" in vortex("export", "a", "11", "--out", occupied / "thesis.tex", "--runs", runs).complaint()


def test_a_cache_in_another_precision_than_the_models_is_not_exported(exported: tuple[Path, Path]) -> None:
    runs, _ = exported
    opened = Run.open("a", runs)
    trial = opened.history.find("t0011")
    source = '@program(page=16, kv="fp16")\nclass Half:\n    def select():\n        return last(2)\n'
    half = parse(source).bind()
    opened.history.trials[trial.slot] = replace(
        trial, proposal=replace(trial.proposal, source=source, knobs={}), hash=canonical_hash(half)
    )
    with pytest.raises(VortexError, match="a KV cache in fp16 under a model in fp32"):
        exporting.export_member(opened, "t0011", "transformers", runs / "half")
    assert not (runs / "half").exists()


def test_an_export_needs_the_parameters_that_were_measured(exported: tuple[Path, Path], tmp_path: Path) -> None:
    runs, _ = exported
    opened = Run.open("a", runs)
    trial, shape = opened.history.find("t0011"), find_geometry(str(REFERENCE_MODEL))
    assert trial.verdict is not None
    file, other = tmp_path / "learned.safetensors", tmp_path / "other.safetensors"
    gate = torch.ones(shape.layers, shape.kv_heads, shape.group, shape.head_dim)
    save_file({"importance": torch.ones(shape.layers, shape.head_dim), "gate": gate}, file)
    save_file({"importance": torch.ones(shape.layers, shape.head_dim), "gate": 2 * gate}, other)
    mark = canonical_hash(LEARNED.bind({}, Parameters.open(file)))
    opened.history.trials[trial.slot] = replace(
        trial,
        proposal=replace(trial.proposal, source=LEARNED.source, knobs={}),
        verdict=replace(trial.verdict, source_hash=mark),
    )

    def export(**more: Any) -> Any:
        out = tmp_path / "out"
        return exporting.export_member(opened, "t0011", "transformers", out, cases=1, protocols=False, **more)

    with pytest.raises(VortexError, match="give --parameters FILE"):
        export()
    with pytest.raises(VortexError, match="measured with other parameters"):
        export(parameters=other)
    with pytest.raises(VortexError, match="cannot read the parameters"):
        export(parameters=tmp_path / "none")
    plain = vortex("export", "a", "t0011", "--parameters", file, "--runs", runs, "--out", tmp_path / "out")
    assert "has no parameters; leave out --parameters" in plain.complaint()
    assert not (tmp_path / "out").exists()
    written = export(parameters=file)
    assert written.manifest["parameters"] == Parameters.open(file).digest and len(written.selftest["cases"]) == 1
    file.unlink()
    assert vortex("verify", tmp_path / "out").status == 0


def test_sparse_prefill_is_not_exported(tmp_path: Path) -> None:
    settings = EvaluationConfig(lengths=(LENGTH,), threads=1, phase="prefill")
    record_campaign(tmp_path, "p", 2, evaluation=settings)
    done = vortex("export", "p", "t0000", "--runs", tmp_path, "--out", tmp_path / "out")
    assert "measured sparse prefill, and transformers reads prompts densely" in done.complaint()


def test_verify_says_yes_where_pip_installed_it(
    exported: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out = exported
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site)]
    subprocess.run([*pip, str(out)], check=True, capture_output=True, text=True)
    monkeypatch.chdir(tmp_path)  # folder and interpreter may be named from where one is
    done = vortex("verify", "site", "--python", os.path.relpath(sys.executable), "--json")
    found = done.json("verify")
    assert done.status == 0 and found["ok"] and found["imported_from"].startswith(str(site))
    assert 0 < found["density"] < 0.9
    for judgement in found["comparisons"].values():
        assert judgement["ok"] and judgement["cases"] == 2 and judgement["steps"] >= 2
        assert judgement["worst_logit_difference"] < 1e-4


def test_verify_asks_sealed_questions_and_times_the_engine(exported: tuple[Path, Path]) -> None:
    """Which side is faster is the machine's affair; the status follows it, unless slowness is allowed."""
    words = ("--accuracy", "1", "--speed", "--length", "256", "--batch", "1", "--batch", "2")
    done = vortex("verify", exported[1], *words, "--json")
    found = done.json("verify")
    assert found["served"]["ok"] and found["selections"]["wrong"] == 0 and found["selections"]["lists"] >= 4
    kept, timed = found["accuracy"], found["speed"]
    assert kept["ok"] and kept["split"] == "sealed" and kept["same_answers"] >= kept["answers"] - 1
    assert [(row["length"], row["batch"]) for row in timed["rows"]] == [(256, 1), (256, 2)]
    assert all(row["gate off"]["sparse_share"] == 1 for row in timed["rows"])
    assert timed["ok"] == (timed["break_even"] >= 1) and done.status == (0 if timed["ok"] else 1)
    allowed = vortex("verify", exported[1], *words, "--allow-slow")
    assert allowed.status == 0 and allowed.out.splitlines()[-1] == "verified"


def test_verify_says_no_to_a_package_that_runs_something_else(exported: tuple[Path, Path], tmp_path: Path) -> None:
    """The program is untouched, the code that runs it is not; on another model too, where nothing was recorded."""
    _, out = exported
    found = package.read(out)
    changed = tmp_path / found.module
    changed.mkdir()
    for file in (out / found.module).iterdir():
        if file.is_file():
            (changed / file.name).write_text(file.read_text())
    code = (changed / "__init__.py").read_text()
    other = "@program(page=16)\nclass Other:\n    def select():\n        return last(1)\n"
    swapped = f"__import__('vortexlab.dsl').dsl.parse({other!r}).bind()"
    assert "_Pattern(_package.program" in code
    (changed / "__init__.py").write_text(code.replace("_Pattern(_package.program", f"_Pattern({swapped}"))
    done = vortex("verify", tmp_path)
    assert done.status == 1 and done.out.splitlines()[-1] == "NOT VERIFIED" and "NO:" in done.out


def test_verify_says_no_to_numbers_that_were_not_measured(exported: tuple[Path, Path], tmp_path: Path) -> None:
    """Package and evaluator agree today, and what was recorded at export was something else."""
    changed = tmp_path / "package"
    shutil.copytree(exported[1], changed, ignore=shutil.ignore_patterns("build", "*.egg-info"))  # pip's own leavings
    (file,) = changed.rglob("selftest.json")
    tests = json.loads(file.read_text())
    tests["cases"][0]["logits"][0]["values"][0] += tests["cases"][0]["logits"][0]["spread"]
    file.write_text(json.dumps(tests))
    done = vortex("verify", changed, "--json")
    found = done.json("verify")
    assert done.status == 1 and not found["ok"] and found["comparisons"]["engine"]["ok"]
    assert not found["comparisons"]["recorded"]["ok"] and not found["comparisons"]["evaluator"]["ok"]


def test_verify_on_another_model(exported: tuple[Path, Path], tiny: Path) -> None:
    done = vortex("verify", exported[1], "--model", tiny, "--json")
    found = done.json("verify")
    assert done.status == 0 and found["comparisons"]["engine"]["ok"]
    assert found["comparisons"]["recorded"] is None and found["comparisons"]["evaluator"] is None


def test_verify_refuses_what_is_no_package(exported: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = exported
    assert "holds no exported package" in vortex("verify", tmp_path).complaint()
    assert "no config.json" in vortex("verify", out, "--model", tmp_path).complaint()
    found = package.read(out)
    copy = tmp_path / found.module
    copy.mkdir()
    for file in (out / found.module).iterdir():
        if file.is_file():
            (copy / file.name).write_text(file.read_text())
    tests = json.loads((copy / "selftest.json").read_text())
    (copy / "selftest.json").write_text(json.dumps({**tests, "model_digest": "0" * 64}))
    assert "another model than the shipped one" in vortex("verify", tmp_path).complaint()
    (copy / "selftest.json").write_text(json.dumps({**tests, "cases": [{}]}))
    assert "self-test" in vortex("verify", tmp_path).complaint()
    (copy / "__init__.py").write_text("raise RuntimeError('broken')")
    (copy / "selftest.json").write_text(json.dumps(tests))
    assert "RuntimeError: broken" in vortex("verify", tmp_path).complaint()
    program = json.loads((copy / "program.json").read_text())
    (copy / "program.json").write_text(json.dumps({**program, "page": 32}))
    assert "is not the one that was measured" in vortex("verify", tmp_path).complaint()
