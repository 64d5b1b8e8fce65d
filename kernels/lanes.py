"""Independent pieces of a CPU step side by side, each on one thread.

torch splits a single op over threads and waits for all of them before the next one. A sparse step has dozens of small
ops, so it would wait dozens of times, and on a machine that has other work each wait can cost a time slice. Here the
step is split instead: every lane takes whole pieces (some requests, some KV heads) through all their ops, and they meet
once. One lane gathers pages from memory while another multiplies.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")

_pools: dict[int, ThreadPoolExecutor] = {}
_open = threading.local()
# A forked process has none of its parent's threads.
os.register_at_fork(after_in_child=_pools.clear)


class Lanes:
    """Runs pieces on `count` threads; `count` 1 means here, one after the other."""

    def __init__(self, count: int):
        self.count = count

    def run(self, work: Callable[[T], None], pieces: Sequence[T]) -> None:
        """Calls `work` on every piece, in any order; returns when all are done, raising the first failure."""
        if self.count == 1 or len(pieces) < 2:
            for piece in pieces:
                work(piece)
            return
        inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        waiting = iter(pieces)
        lock = threading.Lock()

        def lane(_: int) -> None:
            # torch keeps these two per thread.
            with torch.inference_mode(inference), torch.set_grad_enabled(grad):
                while True:
                    with lock:
                        piece = next(waiting, None)
                    if piece is None:
                        return
                    work(piece)

        if self.count not in _pools:
            _pools[self.count] = ThreadPoolExecutor(self.count, thread_name_prefix="vortex-lane")
        list(_pools[self.count].map(lane, range(self.count)))


@contextlib.contextmanager
def lanes(device: torch.device) -> Iterator[Lanes]:
    """As many lanes as torch has threads, whose ops then use one thread each. On other devices than the CPU, one.

    Inside an open block the same lanes are given again.
    """
    held: Lanes | None = getattr(_open, "lanes", None)
    count = torch.get_num_threads() if device.type == "cpu" else 1
    if held is not None or count == 1:
        yield held or Lanes(1)
        return
    torch.set_num_threads(1)
    _open.lanes = Lanes(count)
    try:
        yield _open.lanes
    finally:
        _open.lanes = None
        torch.set_num_threads(count)


@contextlib.contextmanager
def one_lane() -> Iterator[None]:
    """Inside the block there is one lane, and torch's number of threads stays: for processes where it is not ours."""
    held = getattr(_open, "lanes", None)
    _open.lanes = held or Lanes(1)
    try:
        yield
    finally:
        _open.lanes = held
