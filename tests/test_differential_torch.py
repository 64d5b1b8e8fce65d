"""The torch executor against the reference: a fixed slice of what `python -m tests.fuzz` does at length."""

from __future__ import annotations

import pytest

from tests.fuzz import published, random_programs, seed_case, total_of
from vortexlab.kernels.torch_executor import TorchExecutor
from vortexlab.search_spaces import load, seeds


def test_random_programs_agree() -> None:
    total, count, nan = total_of(TorchExecutor, random_programs(10_000, 150))
    assert total.disagreements == []
    # A pass must mean something: most lists are determined by exact scores or by bounds, and few runs met a NaN.
    assert total.determined >= 0.8 * total.lists and nan <= 0.05 * count


@pytest.mark.parametrize("name", sorted(seeds()))
def test_published_programs_agree(name: str) -> None:
    total, _, nan = total_of(TorchExecutor, published(10_001, 7, [name]))
    assert total.disagreements == [] and nan == 0


def test_a_long_ragged_batch_agrees() -> None:
    case = seed_case(load("quest"), 10_000)
    assert max(case.lengths) > 1000
    total, _, _ = total_of(TorchExecutor, iter([("quest", case)]))
    assert total.disagreements == []


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 2000, 250))
def test_2000_random_programs_agree(start: int) -> None:
    assert total_of(TorchExecutor, random_programs(start, 250))[0].disagreements == []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(seeds()))
def test_200_configurations_of_each_published_program_agree(name: str) -> None:
    assert total_of(TorchExecutor, published(0, 200, [name]))[0].disagreements == []
