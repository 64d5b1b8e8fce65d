"""Every command and every snippet of the README runs.

The commands run as they stand there, in their order, in one folder; only the size of a campaign is lowered and the
placeholders (a program's id, a model, an endpoint) are filled in.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.llm_server import serving
from tests.test_llm_proposer import PROGRAM, reply
from vortexlab.cli.main import run as vortex
from vortexlab.dsl import parse

README = Path(__file__).resolve().parents[1] / "README.md"
SMALL = "--lengths 256 --contexts 1 --tasks needles --evaluations 3 --batch-tokens 512 --geometry qwen3-1.7b"
MAKEFILE_TARGETS = ("search", "test", "lint", "test-all", "train")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def commands() -> list[str]:
    """Every `vortex` command line of the README, those in the text included."""
    text = README.read_text()
    fenced = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("vortex ")]
    inline = [item for item in re.findall(r"`(vortex [^`]+)`", text) if item not in fenced]
    return fenced + inline


def test_the_readme_shows_every_command(repo_root: Path) -> None:
    from vortexlab.cli.main import COMMANDS

    shown = {line.split()[1] for line in commands()}
    assert shown == set(COMMANDS)


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    Path("idea.py").write_text(blocks("python")[0])
    Path("reply.json").write_text(reply(PROGRAM))
    ran = 0
    with serving([reply(PROGRAM)]) as server:
        for line in commands():
            words = shlex.split(line.replace("NAME", "scripted").replace("URL", server.url).replace(" RUN", " first"))
            if words[1] == "search" and "--resume" not in words:
                if "--name" not in words:
                    words += ["--name", "overnight"]
                if "--hours" in words:
                    words[words.index("--hours") + 1] = "0.001"
                words += SMALL.split()
                if "handoff" in words:  # room for the published programs and one that is told
                    words += ["--evaluations", "20", "--speed", "predicted"]
            elif words[1] in ("eval", "bench", "tell"):
                words += {"eval": SMALL.replace("--evaluations 3", "").split(),
                          "bench": ["--lengths", "256", "--batch", "2"], "tell": []}[words[1]]  # fmt: skip
            elif words[1] == "finals":
                words += ["--contexts", "1"]
            elif words[1] == "explain":
                words += ["--evaluations", "1"]
            elif words[1] == "tune":
                words += ["--seconds", "1", "--out", "tuned.json"]
            elif words[1] == "dashboard":
                shown_until_interrupted(words)
                ran += 1
                continue
            status = vortex([winner(word) for word in words[1:]])
            printed = capsys.readouterr()
            # A rejection is an answer: a tiny campaign measures too little to accept every program.
            allowed = (0, 1) if words[1] in ("eval", "tell") else (0,)
            if words[1] in ("pause", "resume"):
                allowed = (2,)  # nothing is at work here, and they say so
                assert "is not running; go on with `vortex search --resume first`" in printed.err
            if "--cluster" in words and find_spec("ray") is None:
                allowed = (2,)
                assert "pip install 'vortexlab[cluster]'" in printed.err
            if words[1] == "tune" and not torch.cuda.is_available():
                allowed = (2,)  # it says so
            assert status in allowed, f"{line}: status {status}\n{printed.out[-2000:]}{printed.err[-2000:]}"
            ran += 1
    assert ran == len(commands()) >= 19


def shown_until_interrupted(words: list[str]) -> None:
    """`vortex dashboard` answers until Ctrl-C, or says which package it needs."""
    command = [sys.executable, "-m", "vortexlab.cli", *words[1:], "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if line:
            assert "http://127.0.0.1:" in line
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    missing = find_spec("optuna_dashboard") is None
    assert process.returncode == (2 if missing else 0) and ("vortexlab[dashboard]" in said) == missing, said


def winner(word: str) -> str:
    """The README's example ids, as programs of this run."""
    if re.fullmatch(r"t\d{4}", word):
        ids = [entry["id"] for entry in json.loads(_board())["entries"]]
        return ids[0] if word == "t0007" else ids[-1]
    return word


def _board() -> str:
    from vortexlab.agent.run import Run

    return json.dumps(Run.open("first").leaderboard().to_json())


def test_the_program_is_a_program() -> None:
    program = parse(blocks("python")[0])
    assert program.name == "Quest" and program.bind({"budget": 8}).is_bound


def test_the_python_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = "evaluations=3, lengths=[256], contexts=1, tasks=['needles'], speed='predicted', "
    snippet = blocks("python")[1].replace("evaluations=24, ", small)
    assert small in snippet
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 10
    exec(compile(snippet, "README.md", "exec"), {})
    assert Path("runs/from-python/campaign.sqlite").is_file()


@pytest.mark.parametrize("target", MAKEFILE_TARGETS)
def test_the_make_targets_exist(target: str) -> None:
    assert f"make {target}" in README.read_text()
    makefile = (README.parent / "Makefile").read_text()
    assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE)


def results(name: str) -> dict[str, Any]:
    return dict(json.loads((README.parent / "benchmarks" / "results" / f"{name}.json").read_text()))


def figures(header: str) -> list[list[str]]:
    """The rows of the table with this header."""
    _, after = README.read_text().split(header + "\n|", 1)
    rows = after.split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def estimate(item: dict[str, float]) -> str:
    return f"{item['value']:.2f} [{item['low']:.2f}, {item['high']:.2f}]"


def test_the_figures_of_the_campaign_are_those_of_its_record() -> None:
    entries = results("h200-campaign")["entries"]
    recorded = {(f"{e['density']:.3f}", estimate(e["speedup"]), estimate(e["accuracy"]), e["name"]): e for e in entries}
    rows = figures("| program | pages by score | density | speed-up | accuracy kept |")
    assert len(rows) >= 5
    for name, pages, *measured in rows:
        knobs = recorded[(*measured, name.split(",")[0])]["knobs"]
        if pages.isdecimal():
            assert knobs["budget"] == int(pages)
        elif pages.endswith("%"):
            assert knobs["fraction"] == float(pages.split()[0]) / 100
        else:
            assert not {"budget", "fraction"} & set(knobs)
    for entry in entries:
        conditions = entry["conditions"]
        assert (conditions["lengths"], conditions["batch"], conditions["seed"]) == ([4096], {"4096": 256}, 0)
        assert (conditions["dtype"], conditions["geometry"]["name"]) == ("bfloat16", "qwen3-8b")
        assert conditions["baseline"]["4096"].startswith("sdpa") and entry["knobs"].get("page", 16) == 16
        assert (entry["answers"], entry["contexts"], len(conditions["dense_scores"])) == (156, 48, 8)
        assert entry["speed"] == "measured" and not entry["new"]


def test_the_times_of_a_step_are_those_of_their_records() -> None:
    measured = [row for row in results("h200-decode-grid")["rows"] if (row["heads"], row["kv_heads"]) == (16, 8)]
    rows = figures("| context | batch | dense, ours | FlashInfer | SDPA | Quest, 16 | Quest, 64 |")
    assert len(rows) == 9
    for context, batch, *shown in rows:
        place = (int(context.replace(",", "")), int(batch))
        us = {(r["what"], r["page"]): r["us"] for r in measured if (r["context"], r["batch"]) == place}
        dense = [us[f"dense ({name})", 16] for name in ("ours", "FlashInfer", "SDPA, contiguous")]
        sparse = [us["quest", page] for page in (16, 64)]
        assert shown == [f"{x:.1f}" for x in dense] + [f"{x:.1f} ({min(dense) / x:.2f}x)" for x in sparse]


def test_the_times_of_whole_models_are_those_of_their_record() -> None:
    record = results("h200-end-to-end")["rows"]
    for model, batch, dense, *sparse in figures("| model | batch | dense | Quest, 16 | Quest, 64 | Centroid, 16 |"):
        place = (model.lower(), int(batch))
        ms = {r["program"]: r["step_ms"] for r in record if (r["model"], r.get("batch")) == place}
        programs = ("quest P16", "quest P64", "centroid P16")
        assert dense == f"{ms['dense']:.2f}"
        assert sparse == [f"{ms[name]:.2f} ({ms['dense'] / ms[name]:.2f}x)" for name in programs]


def test_the_times_of_latent_attention_are_those_of_their_records() -> None:
    steps = {row["program"]: row for row in results("h200-end-to-end")["rows"] if row["model"] == "glm-4.7-flash"}
    us = {row["what"]: row["us"] for row in results("h200-mla")["rows"] if row.get("batch") == steps["dense"]["batch"]}
    dense, sparse = steps["dense"], steps["mla_block P64"]
    text = " ".join(README.read_text().split())
    assert f"pages of 64: {dense['step_ms']:.1f} ms dense, {sparse['step_ms']:.1f} ms sparse" in text
    assert f"{dense['step_ms'] / sparse['step_ms']:.2f} times as fast" in text
    assert f"would allow {dense['ideal_ms'] / sparse['ideal_ms']:.2f}" in text
    dense_us, peer_us = us["MLA dense"], us["MLA dense (FlashInfer)"]
    assert f"takes {dense_us / 1e3:.2f} ms a layer, FlashInfer's {peer_us / 1e3:.2f}" in text


def test_the_figures_of_the_cpu_are_those_of_their_record() -> None:
    cpu, text = results("cpu-attention"), " ".join(README.read_text().split())
    sparse, dense_ms = (cpu["seconds"][name]["value"] * 1e3 for name in ("sparse", cpu["dense"]))
    assert f"at density {cpu['density']:.3f} takes {sparse:.1f} ms a step" in text
    assert f"dense path {dense_ms:.1f} ms: {estimate(cpu['speedup'])} times as fast" in text
    assert f"would allow {cpu['ideal']:.2f}" in text


def test_linked_documents_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        if "://" not in link:
            assert (README.parent / link).exists(), link
