"""`vortex verify` in vLLM: the campaign's tools in this interpreter, the engine in that of .venv-vllm."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from face_fixtures import record, vortex

from vortexlab.deploy import package
from vortexlab.deploy.package import PROGRAM
from vortexlab.evaluator.config import REFERENCE_MODEL, EvaluationConfig
from vortexlab.evaluator.tasks import make_samples
from vortexlab.kernels.gate import CONDITIONS, Gate, Ratio
from vortexlab.search_spaces.library import load
from vortexlab.served import Served

PYTHON = Path(__file__).resolve().parents[1] / ".venv-vllm/bin/python"
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not PYTHON.exists(), reason="vLLM is not installed; run `make test-vllm`"),
]
LENGTH = 512


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trial t0011 of a campaign whose numbers are made up, exported with what is really measured of it."""
    runs = tmp_path_factory.mktemp("runs")
    settings = EvaluationConfig(lengths=(LENGTH,), tasks=("needle", "keys"), threads=1)
    record(runs, "a", 12, evaluation=settings)
    found = vortex("export", "a", "t0011", "--to", "vllm", "--out", runs / "out", "--runs", runs, "--json")
    assert found.json("export")["engine"] == "vllm"
    return runs / "out"


def test_a_package_for_vllm_is_a_plugin(exported: Path) -> None:
    found = package.read(exported)
    project = (exported / "pyproject.toml").read_text()
    assert f'[project.entry-points."vllm.general_plugins"]\n{found.module} = "{found.module}:register"' in project
    assert f'"vortex": "{found.module}"' in (exported / "README.md").read_text()
    assert found.manifest["measurements"]["other_protocol"]["protocol"] == "prompt-dense"


def test_vllm_computes_what_the_evaluator_measured(exported: Path) -> None:
    done = vortex("verify", exported, "--python", PYTHON, "--accuracy", "4", "--json")
    found = done.json("verify")
    assert done.status == 0 and found["engine"] == "vllm" and found["protocol"] == "prompt-dense", done.out
    assert all(part["ok"] for part in found["comparisons"].values()) and found["density"] < 0.8
    assert found["selections"]["wrong"] == 0 and found["selections"]["lists"] >= 24
    kept = found["accuracy"]
    assert kept["ok"] and kept["answers"] >= 16 and kept["same_answers"] >= 0.9 * kept["answers"]


def test_speed_is_measured_against_vllms_own_attention(exported: Path, tmp_path: Path) -> None:
    """With a gate that never opens, every deployed step is dense. Which side is faster is the machine's affair; the
    status follows it."""
    copy = shutil.copytree(exported, tmp_path / "gated")
    read = package.read(copy)
    conditions = {**dict.fromkeys(CONDITIONS, ""), "program_hash": read.manifest["program_hash"]}
    manifest = copy / read.module / "manifest.json"
    gate = Gate((Ratio(1, 256, 0.5, 0.4, 0.6),), conditions)
    manifest.write_text(json.dumps({**read.manifest, "gate": gate.to_json()}))
    cells = ("--length", "256", "--length", "384", "--batch", "1", "--batch", "2")
    done = vortex("verify", copy, "--python", PYTHON, "--speed", *cells, "--json")
    timed = done.json("verify")["speed"]
    assert [(row["length"], row["batch"]) for row in timed["rows"]] == [(256, 1), (256, 2), (384, 1), (384, 2)]
    for row in timed["rows"]:
        assert row["gate off"]["sparse_share"] == 1 and row["gate on"]["sparse_share"] == 0
        for side in ("dense", "gate off", "gate on"):
            assert 0 < row[side]["between_p50"] <= row[side]["between_p95"]
    assert timed["ok"] == (timed["break_even"] >= 1) and done.status == (0 if timed["ok"] else 1)


def test_what_vllm_refuses_is_one_line(exported: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(exported, tmp_path / "changed")
    file = copy / package.read(copy).module / PROGRAM
    file.write_text(file.read_text().replace('"page": 16', '"page": 32'))
    assert "is not the one that was measured" in vortex("verify", copy, "--python", PYTHON).complaint()
    assert "cannot run" in vortex("verify", exported, "--python", tmp_path / "none").complaint()


def test_uninstalling_leaves_the_engine_as_it_was(exported: Path, tmp_path: Path) -> None:
    """The backend is vLLM's own without the package, the package's with it, and vLLM's own again; of two programs the
    named one runs."""
    module = package.read(exported).module
    look = (
        "import os; os.environ['VLLM_LOGGING_LEVEL'] = 'ERROR'\n"
        "from vllm.plugins import load_general_plugins; load_general_plugins()\n"
        "from vllm.v1.attention.backends.registry import AttentionBackendEnum as E; print(E.CPU_ATTN.get_path())"
    )

    def path(site: Path) -> str:
        done = subprocess.run(
            [PYTHON, "-c", look], capture_output=True, text=True, env={"PYTHONPATH": str(site), "PATH": "/usr/bin"}
        )
        return done.stdout.strip().splitlines()[-1]

    from vortexlab.deploy.install import install

    site = tmp_path / "site"
    site.mkdir()
    before = path(site)
    install(exported, site, str(PYTHON))
    assert path(site) == "vortexlab.deploy.vllm.cpu.SparseBackend" != before
    for item in site.iterdir():
        if item.name.startswith(module):
            shutil.rmtree(item)
    assert path(site) == before


def test_everything_in_bf16_parts_from_vllm_only_at_a_near_draw(tmp_path: Path) -> None:
    """Greedy tokens differ first where vLLM's two best lay within rounding of each other, if at all."""
    program = load("dense").bind()
    written = package.write(
        program, tmp_path / "package", engine="vllm", version="0.1.0", knobs={}, source=program.source,
        measurements={}, selftest={"cases": []},
    )  # fmt: skip
    samples = [make_samples(task, length, 1)[0] for task, length in (("keys", 450), ("needles", 336), ("chain", 200))]
    group = [{"prompt": [*item.context, *item.turns[0].question], "count": 40, "logprobs": 2} for item in samples]
    with Served(written, tmp_path / "package", str(REFERENCE_MODEL), "bfloat16", str(PYTHON)) as served:
        (whole,), (ours,) = (served.answer([group], pattern=asked) for asked in (False, True))
    for stock, row in zip(whole["rows"], ours["rows"], strict=True):
        pairs = zip(stock["tokens"], row["tokens"], stock["logprobs"], strict=True)
        first = next((step["values"] for a, b, step in pairs if a != b), None)
        best = sorted(first, reverse=True) if first else [0.0, 0.0]
        assert best[0] - best[1] < 0.25
