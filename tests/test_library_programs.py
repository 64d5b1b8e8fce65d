"""The published programs as texts: they parse, differ, say where they are from, print and stay short."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest
from dsl_programs import program as written

from vortexlab.dsl import canonical_hash, check, declared_knobs, parse, structure_hash, to_source
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import SET, Knob, Program, Static
from vortexlab.search_spaces.catalogue import TWINS, VORTEX_LINES, code_lines, entry, markdown
from vortexlab.search_spaces.knobs import SHARED
from vortexlab.search_spaces.library import LIBRARY, NAMES, SEEDS, load, source

STATIC = Static(kv_heads=2, group=4, head_dim=64, scale=0.125, layers=8)
LATENT = Static(kv_heads=1, group=16, head_dim=576, scale=0.07, layers=8, latent=512)


def test_names_and_files_are_the_same(repo_root: Path) -> None:
    files = {path.stem for path in (repo_root / "search_spaces" / "programs").glob("*.py")}
    assert files == set(NAMES) and len(set(NAMES)) == len(NAMES) >= 30
    assert set(SEEDS) <= set(LIBRARY["decode"])


@pytest.mark.parametrize("name", NAMES)
def test_a_program_parses_without_a_warning(name: str) -> None:
    found, findings = check(source(name))
    assert found is not None and findings == []
    assert found.nodes[found.output].type.kind == SET
    assert declared_knobs(source(name)) == found.knobs


def test_programs_differ_in_structure_or_say_why() -> None:
    same = defaultdict(set)
    for name in NAMES:
        same[structure_hash(load(name))].add(name)
    pairs = {frozenset(names) for names in same.values() if len(names) > 1}
    assert pairs == {frozenset((name, other)) for name, (other, _) in TWINS.items()}
    for name, (other, _) in TWINS.items():
        assert other in load(name).doc


def test_class_names_differ() -> None:
    assert len({load(name).name for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_docstring_has_formula_source_and_deviations(name: str) -> None:
    found = load(name)
    row = entry(name)
    assert len(row.summary) > 20 and row.summary.endswith(".")
    assert re.search(r"arXiv \d{4}\.\d{5}|NeurIPS 20\d\d", row.source), name
    assert row.deviations, name
    assert "=" in found.doc or name == "dense" or "the fewest pages" in found.doc
    for param in found.params:
        assert param in found.doc, (name, param)


@pytest.mark.parametrize("name", NAMES)
def test_a_program_prints_and_comes_back(name: str) -> None:
    found = load(name)
    printed = to_source(found)
    again = parse(printed)
    assert canonical_hash(again) == canonical_hash(found)
    assert to_source(again) == printed
    assert canonical_hash(Program.from_json(found.to_json())) == canonical_hash(found)


def shared_range(knob: Knob) -> Knob:
    return parse(written("return first(floor(1.0 * x))", body=f"x = {SHARED[knob.name].declaration}")).knobs["x"]


@pytest.mark.parametrize("name", NAMES)
def test_knobs_have_sensible_ranges(name: str) -> None:
    """A shared name keeps its kind, scale and range; every end of a range and every choice binds."""
    found = load(name)
    static = LATENT if name.startswith("mla") else STATIC
    for knob in found.knobs.values():
        if knob.name in SHARED and knob.low is not None:
            shared = shared_range(knob)
            assert (knob.kind, knob.log) == (shared.kind, shared.log), (name, knob.name)
            assert shared.low <= knob.low < knob.high <= shared.high, (name, knob.name)  # type: ignore[operator]
        for value in knob.choices or (knob.low, knob.default, knob.high):
            bound = found.bind({knob.name: value})
            assert bound.is_bound
            bound.axis_sizes(static)


def test_programs_for_latent_attention_refuse_plain_keys_where_they_need_a_latent_part() -> None:
    for name in ("mla_rope_unaware", "mla_rope_unaware_subpage", "mla_rope_weighted"):
        with pytest.raises(VortexError, match="slice"):
            load(name).bind().axis_sizes(STATIC)


def test_the_shortest_programs_are_short() -> None:
    assert code_lines(source("quest")) <= 10
    assert code_lines(source("centroid")) <= 8
    assert code_lines(source("sink_window")) <= 5


def test_lines_of_code_leave_out_docstring_imports_comments_and_blanks() -> None:
    text = 'from x import *\n\n\n@a\nclass B:\n    """Two\n\n    lines."""\n\n    # none\n    c = 1  # one\n'
    assert code_lines(text) == 3


@pytest.mark.parametrize("name", VORTEX_LINES)
def test_a_program_is_shorter_than_its_peer(name: str) -> None:
    assert entry(name).lines < VORTEX_LINES[name]


def test_the_written_table_is_current(repo_root: Path) -> None:
    """`python -m vortexlab.search_spaces.catalogue > docs/library.md` mends this."""
    assert (repo_root / "docs" / "library.md").read_text() == markdown()


def test_the_table_names_every_program() -> None:
    text = markdown()
    for name in NAMES:
        assert f"\n| `{name}` |" in text


def test_an_unknown_program_is_one_clear_line() -> None:
    with pytest.raises(VortexError, match="did you mean infllm_v2") as raised:
        source("infllm2")
    assert "\n" not in str(raised.value)
