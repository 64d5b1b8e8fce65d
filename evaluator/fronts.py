"""The Pareto frontier of speed-up and accuracy kept, of many programs and in every one of many draws. numpy only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def non_dominated(speed: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """bool [..., n]: which points no other point beats in one objective without losing in the other; larger is better.

    Both arrays [..., n]. Of equal points all are kept. Sorts, so that it takes n log n.
    """
    order = np.lexsort((-kept, -speed), axis=-1)
    fast, good = np.take_along_axis(speed, order, -1), np.take_along_axis(kept, order, -1)
    count = speed.shape[-1]
    starts = np.ones(speed.shape, bool)  # of runs of equal speed, whose first point is the best of them
    starts[..., 1:] = fast[..., 1:] < fast[..., :-1]
    first = np.maximum.accumulate(np.where(starts, np.arange(count), 0), axis=-1)
    best = np.maximum.accumulate(good, axis=-1)
    best = np.concatenate([np.full((*speed.shape[:-1], 1), -np.inf), best], axis=-1)  # before each place
    on = (good == np.take_along_axis(good, first, -1)) & (good > np.take_along_axis(best, first, -1))
    found = np.empty(speed.shape, bool)
    np.put_along_axis(found, order, on, -1)
    return found


def frontiers(speed: np.ndarray, kept: np.ndarray) -> Iterator[np.ndarray]:
    """For each draw the indices of the programs that `non_dominated` says; inputs [programs, draws].

    In every draw most programs are dominated by one of the few that are strong on the average: sorted among these they
    are found at once, and only what is left is sorted. What dominates a program is itself left or dominated by one that
    is, so nothing else changes.
    """
    if not len(speed):
        yield from (np.zeros(0, int) for _ in range(speed.shape[1]))
        return
    strong = np.flatnonzero(non_dominated(speed.mean(1), kept.mean(1)))
    strong = strong[np.argsort(speed[strong].min(1))]
    # Of the strong programs whose slowest draw is faster than all of a program's, the slowest keeps the most: where it
    # always keeps as much, the program is never on the frontier.
    rival = np.searchsorted(speed[strong].min(1), speed.max(1), side="right")
    close = [strong, np.flatnonzero(rival == len(strong))]
    for number, other in enumerate(strong):
        behind = np.flatnonzero(rival == number)
        close.append(behind[(kept[behind] > kept[other]).any(1)])
    chosen = np.unique(np.concatenate(close))
    first = np.searchsorted(chosen, strong)
    for fast, good in zip(speed[chosen].T.copy(), kept[chosen].T.copy(), strict=True):
        front = first[non_dominated(fast[first], good[first])]
        front = front[np.argsort(fast[front])]  # so that accuracy descends
        near = np.searchsorted(fast[front], fast)
        ahead = front[np.minimum(near, len(front) - 1)]
        beaten = (near < len(front)) & ((good[ahead] > good) | ((good[ahead] == good) & (fast[ahead] > fast)))
        left = np.flatnonzero(~beaten)
        yield chosen[left[non_dominated(fast[left], good[left])]]


def frontier_probability(speed: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """[programs]: the share of `joint_draws` in which each lies on the Pareto frontier of all; inputs as these are."""
    found = np.zeros(len(speed))
    for front in frontiers(speed, kept):
        found[front] += 1
    return found / speed.shape[1]
