"""What the GPU benchmarks do beside running kernels: records that go on, memory that cells share, tables."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vortexlab.dsl.errors import VortexError
from vortexlab.kernels.gpu import tune, tuning
from vortexlab.kernels.gpu.tune_trial import Problem
from vortexlab.kernels.gpu.tuning import Choice

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import decode_grid
import gpu_times
import grid_checks
import peers
import programs
import records
import select_step
import tune_attention

SMALL = gpu_times.Geometry(4, 2, 16)


def opened(path: Path, resume: Path | None = None, seconds: float = 60.0, **conditions: Any) -> records.Records:
    options = argparse.Namespace(json=path, resume=resume, seconds=seconds)
    return records.Records(options, {"device": "gpu", **conditions}, ("what", "batch"))


def test_a_benchmark_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first, asked = opened(tmp_path / "a.json"), []

    def work(name: str) -> dict[str, float]:
        asked.append(name)
        if name == "bad":
            raise RuntimeError("out of memory")
        return {"us": 2.0}

    first.measure({"what": "good", "batch": 1}, lambda: work("good"))
    failed = first.measure({"what": "bad", "batch": 1}, lambda: work("bad"))
    assert failed is not None and failed["error"] == "RuntimeError: out of memory"
    assert json.loads((tmp_path / "a.json").read_text())["rows"] == first.rows
    assert list(first.errors()) == ["bad 1: RuntimeError: out of memory"]
    again = opened(tmp_path / "b.json", resume=tmp_path / "a.json")
    for name in ("good", "bad"):
        again.measure({"what": name, "batch": 1}, lambda name=name: work(name))  # type: ignore[misc]
    assert asked == ["good", "bad", "bad"] and len(again.rows) == 2
    assert records.read_rows(tmp_path / "b.json") == [
        {"conditions": {"device": "gpu"}, "what": "good", "batch": 1, "us": 2.0}
    ]


def test_nothing_begins_when_the_time_is_over(tmp_path: Path) -> None:
    found = opened(tmp_path / "a.json", seconds=-1.0)
    assert found.is_over and found.measure({"what": "good", "batch": 1}, lambda: {"us": 1.0}) is None
    assert not found.rows


def test_rows_of_other_conditions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    opened(path, kernels="new").write()
    with pytest.raises(VortexError, match="written under another kernels; leave out --resume"):
        opened(path, resume=path, kernels="newer")
    path.write_text("{")
    with pytest.raises(VortexError, match="cannot be gone on from"):
        opened(path, resume=path)
    assert not opened(path, resume=tmp_path / "none.json").rows


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_cells_of_every_size_lie_in_one_pool(layout: str) -> None:
    pool = gpu_times.Pool.make(SMALL, 1024, layout, "cpu")
    cell = pool.cell(2, 128)
    assert cell.layers == 4
    inside = {pool.k.data_ptr() + 2 * i * pool.k.numel() // 4 for i in range(4)}
    assert {cell.cache(layer).k.data_ptr() for layer in range(4)} == inside
    cache = cell.cache(1)
    assert cache.k.shape == (16, 2, 16, 16) and (cache.batch, cache.capacity) == (2, 128)
    assert sorted(cache.table.flatten().tolist()) == list(range(16)) != cache.table.flatten().tolist()
    given = cell.blocks(1, 16)[0]
    assert torch.equal(given.transpose(1, 2) if layout == "NHD" else given, cache.k)
    wide = cell.cache(1, 64)
    assert wide.k.shape == (4, 2, 64, 16) and wide.k.data_ptr() == cache.k.data_ptr()
    k, v = cell.contiguous(1)
    assert k.shape == (2, 2, 128, 16) and k.is_contiguous() and v.data_ptr() == cache.v.data_ptr()
    assert torch.equal(k.flatten().sort().values, cache.k.flatten().sort().values)
    with pytest.raises(ValueError, match="do not fit"):
        pool.cell(16, 128)


def test_long_graphs_are_replayed_less_often() -> None:
    assert gpu_times.replays(1.0) == gpu_times.MOST and gpu_times.replays(1e9) == gpu_times.FEWEST
    assert gpu_times.replays(5e3) == 20


def test_programs_read_what_they_should() -> None:
    for name, page in programs.PROGRAMS:
        chosen = programs.knobs(name, page)
        assert (chosen["budget"] + chosen["sink"] + chosen["recent"]) * page == programs.TOKENS
        assert programs.bound(name, page).page_size == page
    cell = gpu_times.Pool.make(SMALL, 4096, device="cpu").cell(1, 4096)
    pages = programs.TOKENS // 16
    read = programs.least_bytes(programs.bound("quest", 16), cell, pages)
    assert read == 2 * (4096 // 16 - 1) * 2 * 16 * 2 + 2 * programs.TOKENS * 2 * 16 * 2


def test_the_core_grid_is_small_and_comes_first() -> None:
    core, full = decode_grid.cells(False), decode_grid.cells(True)
    assert len(core) * len(gpu_times.GEOMETRIES) <= 40 and full[: len(core)] == core
    assert len(set(full)) == len(full) == 36


def row(what: str, us: float, batch: int = 1, page: int = 16, **more: Any) -> dict[str, Any]:
    place = {"heads": 4, "kv_heads": 2, "head_dim": 16, "context": 128, "batch": batch, "page": page}
    return {"what": what, **place, "us": us, "of_roofline": 0.5, **more}


def test_the_summary_is_a_geometric_mean_and_names_the_worst_cell() -> None:
    rows = [
        row(decode_grid.DENSE, 10.0), row(decode_grid.FLASHINFER, 5.0, better="tensor cores"),
        row(decode_grid.DENSE, 10.0, 8), row(decode_grid.FLASHINFER, 20.0, 8, better="CUDA cores"),
        row(decode_grid.DENSE, 10.0, 32), row("quest", 4.0), {**row("quest", 1.0, 8), "error": "x"},
    ]  # fmt: skip
    found = decode_grid.summary(rows)
    assert found["cells"] == 2 and found["ours_over_flashinfer"] == pytest.approx(1.0)
    assert found["worst"] == {"geometry": str(SMALL), "context": 128, "batch": 1, "ratio": 2.0}
    assert decode_grid.summary(rows[-1:]) == {"cells": 0}
    lines = list(decode_grid.table(rows, SMALL, [(128, 1), (128, 8), (128, 32), (256, 1)]))
    assert len(lines) == 5 and len({len(line) for line in lines[1:]}) == 1
    assert "5.0 TC" in lines[2] and "2.000" in lines[2] and "1.25x" in lines[2] and "20.0 CC" in lines[3]


def test_rates_are_those_of_the_bytes() -> None:
    found = decode_grid.rates(4.6e9, 2000.0)
    assert found["roofline_us"] == pytest.approx(1000) and found["of_roofline"] == pytest.approx(0.5)
    assert found["tb_per_s"] == pytest.approx(2.3)


def test_scores_of_the_peers_are_quests() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(4, 16, generator=generator)
    keys = torch.randn(5, 2, 8, 16, generator=generator)
    lo, hi = keys.amin(2), keys.amax(2)
    found = select_step.quest_scores(q, lo, hi)
    for head in range(2):
        for page in range(5):
            each = [torch.maximum(q[2 * head + i] * lo[page, head], q[2 * head + i] * hi[page, head]) for i in (0, 1)]
            assert found[head, page] == pytest.approx(float(max(item.sum() for item in each)), rel=1e-5)


def test_agreement_counts_pages_that_both_choose() -> None:
    scores = torch.tensor([[0.0, 9.0, 8.0, 1.0, 0.0]])
    chosen = {"sink": 1, "recent": 1, "budget": 2}
    right = torch.tensor([[True, True, True, False, True]])
    assert select_step.agreement(right, scores, chosen) == 1.0
    assert select_step.agreement(torch.tensor([[True, True, False, True, True]]), scores, chosen) == 0.75


def test_exact_attention_reads_the_listed_pages_alone() -> None:
    cell = gpu_times.Pool.make(SMALL, 128, device="cpu").cell(2, 64)
    q, cache = cell.queries[0], cell.cache(0)
    whole = grid_checks.exact(q, cache, None, 16, cell.scale)
    k, v = cache.dense(1)
    one = torch.nn.functional.scaled_dot_product_attention(
        q[1].float().view(2, 2, 16), k.float(), v.float(), scale=cell.scale
    )
    assert grid_checks.distance(whole[1].view(2, 2, 16), one) < 1e-5
    mask = torch.ones(2, 2, 1, 4, dtype=torch.bool)
    lists = grid_checks.PageLists.from_mask(mask)
    assert grid_checks.distance(grid_checks.exact(q, cache, lists, 16, cell.scale), whole) < 1e-6
    mask[..., 0] = False
    part = grid_checks.exact(q, cache, grid_checks.PageLists.from_mask(mask), 16, cell.scale)
    assert grid_checks.distance(part, whole) > 1e-2


def test_a_missing_peer_is_a_row_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    assert peers.flashinfer_version() == "not installed"
    cell = gpu_times.Pool.make(SMALL, 128, device="cpu").cell(2, 64)
    options = argparse.Namespace(json=tmp_path / "a.json", resume=None, seconds=60.0)
    found = records.Records(options, {}, decode_grid.KEYS)
    found.measure(cell.row(decode_grid.FLASHINFER, 16), lambda: decode_grid.flashinfer(cell))
    assert "PeerMissing: not installed" in next(found.errors())
    assert math.isnan(decode_grid.summary(found.rows).get("ours_over_flashinfer", math.nan))


def test_the_tuned_table_is_made_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fake(left: list[Problem], device: torch.device, seconds: float, **_: object) -> Iterator[object]:
        for number, problem in enumerate(left[:1]):  # one case a piece
            asked.append(str(problem))
            usual, other = Choice(64, 4, 3, 1), Choice(32, 4, 3, 1)
            found = tune.Outcome(problem, usual, other, us=8.0 + number, usual_us=9.0)
            yield found, found.entry({"date": "today"})

    monkeypatch.setattr(tune_attention, "tune", fake)
    for piece in range(3):
        words = ["--rehearse", "--out", str(tmp_path), "--workers", "1"]
        words += ["--resume", str(tmp_path / "tune.json")] if piece else []
        monkeypatch.setattr(sys, "argv", ["tune_attention.py", *words])
        assert tune_attention.main() == 0
    assert asked == [str(problem) for problem in tune_attention.problems(rehearse=True)]
    assert len(tuning.Table.read(tmp_path / "interpreter.json", "interpreter").live) == 2


def test_the_shipped_table_is_of_every_case_once() -> None:
    found = list(tune_attention.problems())
    assert len({problem.case.bucket for problem in found}) == len(found)
    dense = {(p.static.group * p.static.kv_heads, p.batch, p.length) for p in found if not p.listed and p.page == 16}
    assert dense == {(h, b, n) for h in (16, 32, 20) for b in (1, 8, 16, 32, 64) for n in (4096, 32768, 131072)}
