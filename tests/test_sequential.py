"""Decisions by betting keep their error under every stopping time, and come when there is something to decide."""

from __future__ import annotations

import numpy as np
import pytest

from vortexlab.evaluator.sequential import (
    INFERIOR,
    LEVEL,
    NON_INFERIOR,
    UNDECIDED,
    Wager,
    drawn_order,
    keeps_less,
    non_inferiority,
)
from vortexlab.evaluator.verdict import Outcome

TASKS = ("a", "b", "c")
MARGIN = 0.02


def contexts(rng: np.random.Generator, drops: tuple[float, ...], count: int, answers: int = 4) -> list[Outcome]:
    """Contexts in drawn order. `drops`: by task, how much less of the score the program keeps than dense attention,
    which knows nine in ten. Answers of one context agree: most of them are right or wrong together."""
    found = []
    for index in range(count):
        task = int(rng.integers(len(drops)))
        dense = answers if rng.random() < 0.9 else 0
        lost = rng.random() < abs(drops[task]) / 0.9
        sparse = 0 if lost and drops[task] > 0 else dense
        if lost and drops[task] < 0:
            sparse, dense = dense, 0
        found.append(Outcome(TASKS[task], f"{index}", 1024, answers, dense, sparse))
    return found


def share_decided(drops: tuple[float, ...], claim: str, *, runs: int = 400, count: int = 200) -> float:
    rng = np.random.default_rng(7)
    return float(np.mean([
        non_inferiority(contexts(rng, drops, count), MARGIN).decision == claim for _ in range(runs)
    ]))  # fmt: skip


@pytest.mark.parametrize("drops", [(MARGIN,) * 3, (0.0, 0.0, 3 * MARGIN), (3 * MARGIN, 0.15, -0.15)])
@pytest.mark.parametrize("claim", [NON_INFERIOR, INFERIOR])
def test_on_the_margin_a_claim_is_wrong_as_seldom_as_promised_though_every_context_is_looked_at(
    drops: tuple[float, ...], claim: str
) -> None:
    # The best moment of 200 looks counts. Three standard errors above the level for 400 runs.
    assert share_decided(drops, claim) <= LEVEL + 3 * (LEVEL / 400) ** 0.5


def test_the_same_looks_with_a_fixed_test_would_not_keep_it() -> None:
    rng, wrong = np.random.default_rng(7), 0
    for _ in range(400):
        values = np.array([(o.sparse - o.dense) / o.answers + MARGIN for o in contexts(rng, (MARGIN,) * 3, 200)])
        n = np.arange(1, 201)
        mean = values.cumsum() / n
        error = np.sqrt(np.maximum((values**2).cumsum() / n - mean**2, 1e-12) / n)
        wrong += bool((np.abs(mean / error)[20:] > 1.96).any())
    assert wrong / 400 > 3 * 2 * LEVEL


def test_a_program_like_dense_is_non_inferior_once_there_are_enough_contexts() -> None:
    equal = [Outcome("a", str(n), 1024, 4, 4, 4) for n in range(260)]
    assert non_inferiority(equal[:150], MARGIN).decision == UNDECIDED
    assert non_inferiority(equal, MARGIN).decision == NON_INFERIOR


def test_a_bad_program_is_found_early() -> None:
    rng = np.random.default_rng(1)
    found = [non_inferiority(contexts(rng, (0.5, 0.3, 0.4), 40), MARGIN).decision for _ in range(100)]
    assert found.count(INFERIOR) >= 90


def test_a_share_that_is_kept_is_seldom_denied() -> None:
    rng = np.random.default_rng(3)
    p = [keeps_less(contexts(rng, (0.45,) * 3, 150), 0.5) for _ in range(400)]  # 0.45 of 0.9 is kept: exactly half
    assert np.mean(np.array(p) <= LEVEL) <= LEVEL + 3 * (LEVEL / 400) ** 0.5
    low = [keeps_less(contexts(rng, (0.8,) * 3, 48), 0.5) for _ in range(100)]
    assert np.mean(np.array(low) <= LEVEL) >= 0.9
    assert keeps_less([], 0.5) == keeps_less(contexts(rng, (0.8,) * 3, 48), 0.0) == 1.0


def test_cells_are_drawn_evenly_and_independently_until_one_runs_out() -> None:
    cells = ["a", "b", "c", "d"] * 50
    order = drawn_order(cells, 0)
    assert len(set(order)) == len(order) and 150 <= len(order) < 200
    assert order == drawn_order(cells, 0) != drawn_order(cells, 1)
    by_cell = {name: [place for place in order if cells[place] == name] for name in "abcd"}
    assert all(places == sorted(places) for places in by_cell.values())
    assert max(map(len, by_cell.values())) == 50 > min(map(len, by_cell.values())) > 30
    assert drawn_order([], 0) == []


def test_a_wager_needs_something_to_lose() -> None:
    with pytest.raises(ValueError, match="below 0"):
        Wager(0.0)
