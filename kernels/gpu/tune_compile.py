"""Compiles the tuner's candidates ahead, in processes side by side, into the cache on disk that they share.

Each candidate runs once on a small case, so that its kernels are exactly those that will be launched. Nothing should be
timed on the GPU meanwhile.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence

import torch

from vortexlab.kernels.gpu.tune import Failures, Say, other_splits, other_tiles, with_splits
from vortexlab.kernels.gpu.tune_trial import KernelTrial, Pool, Problem, Rules
from vortexlab.kernels.gpu.tuning import Choice

#: Candidates with the same tiles, by the variants of kernels that their splits need.
Variants = dict[tuple[int, bool], Choice]
_lost = False  # in a worker: whether a kernel went astray, after which nothing runs in its process


def variants(problem: Problem, device: torch.device) -> dict[Choice, Variants]:
    """The candidates of a problem by their tiles, one for each variant of the kernels: Triton tells numbers of runs
    apart by whether they are 1 or multiples of 16, and the joining kernel by the power of two above."""
    rules, found = Rules(problem, device), {}
    usual = with_splits(rules.usual, None)
    for shape in (usual, *other_tiles(rules)):
        splits = rules.splits(shape)
        some = [None] if splits is None else [splits, *other_splits(splits, problem.case.length, shape.tile)]
        found[shape] = {(((x or 1) - 1).bit_length(), (x or 1) % 16 == 0): with_splits(shape, x) for x in some}
    return found


def compile_ahead(
    problems: Sequence[Problem], device: torch.device, seconds: float, workers: int, say: Say = lambda line: None
) -> Failures:
    """Compiles what tuning these problems will want, the first problems first, for `seconds` at most.

    Returns the tiles that cannot run, whatever their splits.
    """
    tasks: dict[tuple[Problem, Choice], Variants] = {}
    for problem in problems:
        for shape, kinds in variants(problem, device).items():
            tasks.setdefault((problem.small(), shape), {}).update(kinds)
    failed: Failures = {}
    ends, total = time.monotonic() + seconds, len(tasks)
    # Ended by force: a compiler that hangs should not hold the tuner up.
    with multiprocessing.get_context("spawn").Pool(min(workers, max(1, total))) as pool:
        left = {
            task: pool.apply_async(_compile, (str(device), task[0], list(kinds.values())))
            for task, kinds in tasks.items()
        }
        while left and time.monotonic() < ends:
            for task in [task for task, result in left.items() if result.ready()]:
                if why := left.pop(task).get():
                    failed[task] = why
            time.sleep(0.05)
    say(f"compiled {total - len(left)} of {total} tiles with {workers} processes; {len(failed)} cannot run here")
    return failed


def _compile(device: str, problem: Problem, choices: Sequence[Choice]) -> str:
    """Runs candidates once; why the first that fails does, or nothing."""
    global _lost
    if _lost:
        return ""
    try:
        trial = KernelTrial(problem, Pool(torch.device(device)), layers=1)
        for choice in choices:
            trial.run(choice)
    except Exception as error:
        try:
            if device.startswith("cuda"):
                torch.cuda.synchronize()
        except RuntimeError:
            _lost = True
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""
