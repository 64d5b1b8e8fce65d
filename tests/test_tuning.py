"""Tuned tables: which entry holds for a launch, which do not, and what becomes of files that are none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from triton_runs import interpreted

from vortexlab.dsl.errors import VortexError

pytest.importorskip("triton")

from vortexlab.evaluator import config
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.gpu import tuning
from vortexlab.kernels.gpu.attention import AttentionShape
from vortexlab.kernels.gpu.tuning import Case, Choice, Entry, Table

GPU = "interpreter"  # what the CPU is called
USUAL = AttentionShape.of(2, 16, 4)
CASE = Case("attend", 2, 0, 2, 16, 16, "fp32", "fp32", 16, 0, 4, 96)
TUNED = Choice(32, 8, 4, 5)


def entry(case: Case = CASE, choice: Choice = TUNED, **other: Any) -> Entry:
    usual = Choice.of(USUAL, 1) if case.kernel != "attend_prefill" else Choice(16, 4, 2, None, 32)
    return Entry(case, choice, usual, **{"sources": tuning.sources(case.kernel), "us": 8.0, "usual_us": 9.0,
                                         "noise": 0.01, "conditions": {"date": "2026-01-01"}, **other})  # fmt: skip


def look(case: Case = CASE, usual: AttentionShape = USUAL) -> tuple[AttentionShape, int | None]:
    """What a launch like `case` gets."""
    blocks = -(-case.length // 16)
    k = torch.zeros(case.batch * blocks, case.kv_heads, 16, case.head_dim)
    table = torch.arange(case.batch * blocks, dtype=torch.int32).view(case.batch, blocks)
    cache = PagedKV(k, k, table, torch.full((case.batch,), case.length, dtype=torch.int32), 16)
    q = torch.zeros(case.batch, case.heads * case.kv_heads, case.head_dim)
    return tuning.choose("attend", usual, q, cache, heads=case.heads, lists=case.lists, atom=case.atom,
                         length=case.length)  # fmt: skip


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The user's cache and the shipped tables in folders of the test."""
    monkeypatch.setenv("VORTEX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "shipped")
    tuning.forget()
    yield
    tuning.forget()


def user(*entries: Entry) -> Path:
    path = tuning.user_table(GPU)
    Table(GPU, entries).write(path)
    return path


def shipped(*entries: Entry) -> None:
    Table(GPU, entries).write(tuning.SHIPPED / tuning.file_name(GPU))


def test_without_tables_the_rule_decides() -> None:
    assert look() == (USUAL, None) and tuning.in_force(GPU) == []


def test_the_users_table_comes_before_the_shipped_one() -> None:
    shipped(entry())
    assert look() == (replace(USUAL, tile=32, warps=8, stages=4), 5)
    user(entry(choice=Choice(64, 2, 3, 7)))
    assert look() == (replace(USUAL, tile=64, warps=2, stages=3), 7)
    user(entry(CASE._replace(batch=1)))  # nothing for this case any more: the shipped entry holds again
    assert look()[1] == 5
    assert [found["origin"] for found in tuning.in_force(GPU)] == ["user", "shipped"]


@pytest.mark.parametrize(
    ("other", "splits"),
    [
        ({}, 5), ({"length": 91}, 5), ({"length": 181}, 5), ({"batch": 3}, None), ({"batch": 5}, None),
        ({"batch": 2}, "rule"), ({"batch": 6}, "rule"), ({"length": 90}, "rule"), ({"length": 182}, "rule"),
        ({"lists": 1}, "rule"), ({"atom": 8}, "rule"), ({"heads": 1}, "rule"), ({"kv_heads": 1}, "rule"),
        ({"head_dim": 32}, "rule"),
    ],
)  # fmt: skip
def test_an_entry_holds_for_its_bucket_and_its_splits_for_its_batch(other: dict[str, int], splits: Any) -> None:
    user(entry())
    found = look(CASE._replace(**other))
    assert found == (USUAL, None) if splits == "rule" else (replace(USUAL, tile=32, warps=8, stages=4), splits)


def test_an_entry_of_other_kernels_or_another_rule_is_ignored() -> None:
    user(entry(sources="0" * 64))
    assert look() == (USUAL, None)
    assert [(found["entries"], found["stale"]) for found in tuning.in_force(GPU)] == [(0, 1)]
    user(entry())
    assert look(usual=replace(USUAL, tile=16)) == (replace(USUAL, tile=16), None)


def test_the_hash_follows_text_numbers_and_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    from vortexlab.kernels.gpu import latent_kernels, prefill_kernels

    before = tuning.sources("attend_latent")
    assert tuning.sources("attend_latent", "0.0") != before and tuning.sources("attend") != before
    tuning.sources.cache_clear()
    monkeypatch.setitem(latent_kernels.latent_split.fn.__globals__, "row_member", prefill_kernels.run_start)
    assert tuning.sources("attend_latent") != before  # a device function that is another
    tuning.sources.cache_clear()


def test_every_shipped_entry_is_of_these_kernels() -> None:
    for path in (Path(tuning.__file__).parent / "tables").glob("*.json"):
        found = Table.read(path, json.loads(path.read_text())["device"])
        for item in found.entries:
            mend = "measure it again with benchmarks/tune_attention.py, or remove it"
            assert item.sources == tuning.sources(item.case.kernel, item.conditions["triton"]), (item.case, mend)
            assert item.us < item.usual_us


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.update(format=2), "format 1"),
        (lambda data: data.update(device="other"), "for interpreter"),
        (lambda data: data.pop("entries"), "entries"),
        (lambda data: data["entries"][0].pop("atom"), "entry 0: the entry lacks or does not know atom"),
        (lambda data: data["entries"][0].update(colour=1), "colour"),
        (lambda data: data["entries"][0].update(kernel="map"), "entry 0: kernel 'map'"),
        (lambda data: data["entries"][0].update(batch=0), "batch 0"),
        (lambda data: data["entries"][0].update(us=-1), "us -1 is no time"),
        (lambda data: data["entries"][0].update(choice=3), "choice"),
        (lambda data: data["entries"][0]["choice"].update(tile=24), "tile 24 is no power of two of 16 to 512"),
        (lambda data: data["entries"][0]["choice"].update(warps=True), "warps True"),
        (lambda data: data["entries"][0]["choice"].update(stages=9), "stages 9"),
        (lambda data: data["entries"][0]["choice"].update(splits=0), "splits 0"),
        (lambda data: data["entries"][0]["choice"].update(rows=32), "has no rows to choose"),
        (lambda data: data["entries"].append(data["entries"][0]), "entry 1: its case is that of an entry before it"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_refused_in_one_line(change: Any, says: str) -> None:
    path = user(entry())
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(VortexError) as caught:
        look()
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and says in line and "\n" not in line and "vortex tune" in line


def test_rows_that_do_not_hold_the_heads_are_refused() -> None:
    prompt = CASE._replace(kernel="attend_prefill", heads=24)
    with pytest.raises(VortexError, match="rows 16 is no power of two of 32 to 256"):
        entry(prompt, Choice(32, 4, 3, None, 16))
    assert entry(prompt, Choice(32, 4, 3, None, 32)).choice.tiles["rows"] == 32


def test_text_that_is_no_json_and_folders_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = user(entry())
    path.write_text("{")
    with pytest.raises(VortexError, match="Expecting"):
        look()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VORTEX_CACHE_DIR", str(tmp_path / "file"))
    tuning.forget()
    assert look() == (USUAL, None)  # no table can be there
    with pytest.raises(VortexError, match=r"the tuner's table cannot be written to .*; set VORTEX_CACHE_DIR"):
        user(entry())


def test_tuning_again_replaces_what_was_measured_and_keeps_the_rest() -> None:
    other = entry(CASE._replace(length=4096))
    table = Table(GPU, (entry(), other))
    assert table.with_entries([], [CASE._replace(length=100)]).entries == (other,)
    better = entry(choice=Choice(16, 4, 2, 3))
    assert table.with_entries([better], [CASE]).entries == (other, better)
    path = user(other, better)
    assert Table.read(path, GPU).entries == (other, better)


def test_tables_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    path = user(entry())
    look()
    path.write_text("{")
    assert look(CASE._replace(batch=5))[0].tile == 32


def test_a_measurement_names_the_tables_it_ran_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.tuned_tables("cpu") == []
    monkeypatch.setattr(config, "device_name", lambda device: GPU)
    on_gpu = config.EvaluationConfig(device="cuda")
    before = on_gpu.environment_key()
    path = user(entry(), entry(CASE._replace(batch=1), sources="0" * 64))
    (found,) = config.tuned_tables("cuda")
    assert found == {"origin": "user", "sha256": found["sha256"], "entries": 1, "stale": 1}
    assert on_gpu.environment_key() != before
    assert config.EvaluationConfig(device="cuda", speed="predicted").environment_key() != on_gpu.environment_key()
    tuning.lend(GPU, tmp_path / "home")
    monkeypatch.delenv("VORTEX_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert tuning.user_table(GPU) != path and tuning.user_table(GPU).read_text() == path.read_text()


def test_the_tuner_runs_the_kernels_that_it_tunes() -> None:
    """In Triton's interpreter, where times mean nothing: every candidate computes what the rule's choice does."""
    for row in interpreted("tune"):
        assert row["tried"] == row["candidates"] > 0 and not row["failed"] and row["us"] > 0, row


def test_a_kernel_gives_the_same_answer_with_an_entry(tmp_path: Path) -> None:
    """In Triton's interpreter: dense, listed, latent and whole prompts, with tiles and splits from a table."""
    found = interpreted("tuned", folder=str(tmp_path / "tuned"))
    assert set(found) == {"attend", "attend listed", "attend_latent", "attend_latent listed", "attend_prefill",
                          "attend_prefill listed"}  # fmt: skip
    for name, row in found.items():
        assert row["used"] and row["worst"] < 1e-5, name
