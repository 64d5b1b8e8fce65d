"""Random programs and configurations: valid by construction, repeatable, and wide enough to mean something."""

from __future__ import annotations

import random
from collections import Counter

import torch

from vortexlab.dsl import canonical_hash, parse
from vortexlab.dsl.ir import PAGE_STAGE, REDUCTIONS
from vortexlab.dsl.ops import OPS
from vortexlab.dsl.reference import run
from vortexlab.dsl.testing import EXACT_KINDS, PAGES, REAL_KINDS, random_case, random_program

TEXTS = [random_program(random.Random(seed), whole=True) for seed in range(400)]


def test_every_random_program_is_valid_and_they_use_every_operation() -> None:
    live: Counter[str] = Counter()
    reductions: set[tuple[str, str, bool]] = set()
    among: Counter[str] = Counter()
    per_head = 0
    for text in TEXTS:
        program = parse(text)
        per_head += bool(program.nodes[program.output].type.axes)
        for index in program.live():
            node = program.nodes[index]
            live[node.op] += 1
            if node.op == "reduce":
                reductions.add((str(node.attrs["how"]), node.stage, node.attrs["axis"] == "page"))
            if node.op in ("topk", "topp", "above", "random"):
                among[node.op] += len(node.inputs) == OPS[node.op].arity[1]
    assert set(live) == set(OPS), f"never used: {set(OPS) - set(live)}"
    assert {(how, stage, over) for how in REDUCTIONS for stage, over in
            ((PAGE_STAGE, False), ("query", False), ("query", True))} <= reductions  # fmt: skip
    assert set(among) == {"topk", "topp", "above", "random"} and min(among.values()) > 0
    assert per_head > 40


def test_programs_are_repeatable_and_all_different() -> None:
    assert TEXTS[:5] == [random_program(random.Random(seed), whole=True) for seed in range(5)]
    assert len({canonical_hash(parse(text)) for text in TEXTS}) > 380


def test_page_size_and_exactness_can_be_asked_for() -> None:
    inexact = {"exp", "log", "sqrt", "sigmoid", "silu", "tanh", "softmax"}
    for seed in range(100):
        program = parse(random_program(random.Random(seed), page=24, smooth=False))
        assert program.page == 24
        tensors = {program.nodes[i].op for i in program.live() if program.nodes[i].type.axes}
        assert not tensors & inexact


def test_cases_cover_geometries_lengths_and_kinds_of_input() -> None:
    program = parse(TEXTS[0])
    cases = [random_case(seed, program, max_length=300) for seed in range(400)]
    assert {case.kind for case in cases} == {*EXACT_KINDS, *REAL_KINDS}
    assert {case.static.head_dim for case in cases} >= {32, 80, 96, 256}
    assert {case.static.group for case in cases} >= {1, 3, 7, 16}
    lengths = {length for case in cases for length in case.lengths}
    assert min(lengths) < 8 and max(lengths) > 290
    page = program.bind().page_size
    assert {length % page for length in lengths} >= {0, 1, page - 1}
    assert {case.block % page == 0 for case in cases} == {True, False} == {page % case.block == 0 for case in cases}
    assert {case.keys[0].dtype for case in cases} == {torch.float32, torch.bfloat16, torch.float16}
    sizes = {random_case(seed, program, page=page).program.page_size for seed, page in enumerate(PAGES)}
    assert sizes == set(PAGES)
    again = random_case(7, program, max_length=300)
    assert str(again) == str(cases[7]) and torch.equal(again.q, cases[7].q)


def test_programs_are_not_prone_to_nan() -> None:
    flagged = 0
    for seed in range(150):
        case = random_case(seed, parse(TEXTS[seed]), max_length=120)
        flagged += run(case.program, case.static, case.q, case.keys, case.values).nan
    assert flagged <= 3
