"""A campaign on every supported architecture ends and exports, and finals are held with a real evaluator."""

from __future__ import annotations

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
    export(tmp_path, search(tmp_path, *asked, "--score", "agreement"), model)


@pytest.mark.slow
def test_ruler_on_a_random_qwen3_in_its_chat_template(tmp_path: Path) -> None:
    """The documented command of a Qwen3-class model, rehearsed at a short length."""
    model = save_supported(tmp_path / "model", "qwen3", chat=CHAT)
    asked = ("--model-dir", model, "--tasks", "ruler/fwe", "--lengths", "1k", "--score", "agreement")
    export(tmp_path, search(tmp_path, *asked), model)


@pytest.mark.slow
def test_finals_with_a_real_evaluator(tmp_path: Path) -> None:
    search(tmp_path, "--tasks", "needles", "--lengths", "256", "--dense-floor", "0")
    found = vortex("finals", "tiny", "--runs", tmp_path, "--contexts", "2", "--json").json("finals")
    assert found["rows"] and found["lengths"] == [128, 384] and found["split"] == "sealed"
    assert all(row["verdict"]["conditions"]["split"] == "sealed" for row in found["rows"])
    measured = [row for row in found["rows"] if row["verdict"]["accuracy"]]
    assert measured and all(row["verdict"]["answers"] > 0 and row["opening"] == 1 for row in measured)
    page = render(Run.open("tiny", tmp_path))
    assert "<h2>Finals</h2>" in page and "128, 384 tokens" in page
