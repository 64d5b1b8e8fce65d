"""A campaign ends on every supported architecture, exports where heads are grouped, and finals are real."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest
from checkpoints import SUPPORTED, save_supported
from face_fixtures import vortex
from worded_models import CHAT

from vortexlab.agent.run import Run
from vortexlab.report.page import render

TINY = (
    "--contexts", "2", "--evaluations", "3", "--speed", "predicted", "--threads", "1", "--device", "cpu", "--json",
)  # fmt: skip


def search(runs: Path, *words: str | Path) -> str:
    """Runs a tiny campaign; returns an exportable member."""
    found = vortex("search", "--name", "tiny", "--runs", runs, *words, *TINY).json("search")
    assert found["entries"]
    return str(next(entry["id"] for entry in found["entries"] if entry["id"] != "dense"))


def export(runs: Path, member: str, model: Path) -> None:
    assert vortex("export", "tiny", member, "--runs", runs, "--out", runs / "package").status == 0
    found = vortex("verify", runs / "package", "--model", model, "--json")
    assert found.status == 0, found.out + found.err


@pytest.mark.slow
@pytest.mark.parametrize("kind", SUPPORTED)
def test_a_campaign_on_a_random_checkpoint_exports(kind: str, tmp_path: Path) -> None:
    """It answers nothing right, so programs are held against what dense attention answers."""
    model = save_supported(tmp_path / "model", kind)
    asked = ("--model-dir", model, "--tasks", "needles", "--lengths", "256")
    refused = vortex("search", "--name", "none", "--runs", tmp_path, *asked, *TINY)
    assert refused.status == 2 and "(--score agreement)" in refused.err.splitlines()[-1]
    member = search(tmp_path, *asked, "--score", "agreement")
    if kind in ("glm", "deepseek"):
        assert "latent attention" in vortex("export", "tiny", member, "--runs", tmp_path).complaint()
    else:
        export(tmp_path, member, model)


@pytest.mark.slow
def test_the_documented_command_of_a_qwen3_class_model(tmp_path: Path, repo_root: Path) -> None:
    """As it stands in docs/tasks.md, on a random checkpoint of the architecture and at a short length."""
    (line,) = re.findall(r"^vortex (search .*Qwen3-8B.*)$", (repo_root / "docs" / "tasks.md").read_text(), re.MULTILINE)
    model = save_supported(tmp_path / "model", "qwen3", chat=CHAT)
    smaller = {"Qwen/Qwen3-8B": str(model), "16k": "1k", "ruler": "ruler/fwe", "8": "0.5"}
    words = shlex.split(line)
    words = [words[0], *(smaller.get(word, word) if before != "--name" else "tiny"
                         for before, word in itertools.pairwise(words))]  # fmt: skip
    found = vortex(*words, "--score", "agreement", "--runs", tmp_path, *TINY).json("search")
    assert found["entries"]
    conditions = Run.open("tiny", tmp_path).trials[0].verdict.conditions  # type: ignore[union-attr]
    assert conditions["template"] == "auto" and conditions["score"] == "agreement"
    assert set(conditions["dense_scores"].values()) == {1.0}


@pytest.mark.slow
def test_finals_with_a_real_evaluator(tmp_path: Path) -> None:
    search(tmp_path, "--tasks", "needles", "--lengths", "256", "--dense-floor", "0")
    found = vortex("finals", "tiny", "--runs", tmp_path, "--contexts", "2", "--json").json("finals")
    assert found["rows"] and found["lengths"] == [384] and found["split"] == "sealed"
    assert all(row["verdict"]["conditions"]["split"] == "sealed" for row in found["rows"])
    measured = [row for row in found["rows"] if row["verdict"]["accuracy"]]
    assert measured and all(row["verdict"]["answers"] > 0 and row["opening"] == 1 for row in measured)
    page = render(Run.open("tiny", tmp_path))
    assert ">Finals</h2>" in page and "384 tokens" in page
