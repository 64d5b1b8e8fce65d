"""Lanes: pieces of a CPU step on threads of their own, with the same results as one after the other."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
import torch
from test_torch_executor import LENGTHS, PROGRAMS, STATIC, batch, program

from vortexlab.kernels import torch_attend
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.lanes import Lanes, lanes
from vortexlab.kernels.torch_executor import TorchExecutor
from vortexlab.kernels.torch_step import SWEEP_BYTES

CPU = torch.device("cpu")


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_every_piece_is_done_once_on_a_thread_of_one() -> None:
    seen: list[tuple[int, int]] = []
    met = threading.Barrier(3)

    def work(piece: int) -> None:
        if piece < 3:
            met.wait(30)  # three at the same time, or this fails
        seen.append((piece, torch.get_num_threads()))

    with lanes(CPU) as opened:
        assert opened.count == 3
        opened.run(work, range(20))
        with lanes(CPU) as inner:
            assert inner is opened
    assert sorted(seen) == [(piece, 1) for piece in range(20)]
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_a_failing_piece_fails_the_step_and_restores_the_threads() -> None:
    def work(piece: int) -> None:
        if piece == 5:
            raise ValueError("piece 5")

    with pytest.raises(ValueError, match="piece 5"), lanes(CPU) as opened:
        opened.run(work, range(9))
    assert torch.get_num_threads() == 3
    with lanes(CPU) as opened:
        assert opened.count == 3


@pytest.mark.usefixtures("three_threads")
def test_modes_of_the_caller_hold_in_every_lane() -> None:
    modes: list[tuple[bool, bool]] = []

    def work(_: int) -> None:
        modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

    with lanes(CPU) as opened:
        with torch.inference_mode():
            opened.run(work, range(4))
        with torch.no_grad():
            opened.run(work, range(4))
    assert modes == [(True, False)] * 4 + [(False, False)] * 4


def test_one_thread_and_other_devices_work_in_place() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    here: list[int] = []
    with lanes(CPU) as opened:
        opened.run(lambda _: here.append(threading.get_ident()), range(3))
    torch.set_num_threads(before)
    assert here == [threading.get_ident()] * 3
    with lanes(torch.device("meta")) as opened:
        assert opened.count == 1


@pytest.mark.usefixtures("three_threads")
def test_a_forked_process_has_lanes_of_its_own() -> None:
    Lanes(2).run(lambda _: None, range(4))  # threads that the child does not inherit
    child = os.fork()
    if child == 0:
        try:
            done: list[int] = []
            Lanes(2).run(done.append, range(4))
            os._exit(0 if sorted(done) == [0, 1, 2, 3] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_step_on_lanes_equals_a_step_on_one_thread(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_attend, "TILE_BYTES", 1 << 8)
    monkeypatch.setitem(SWEEP_BYTES, "cpu", 1 << 10)  # many pieces
    for lengths in (LENGTHS, (150,)):
        q, keys, values = batch(lengths, seed=2)
        cache = PagedKV.from_dense(keys, values, 4, shuffle_seed=1)
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            executor = TorchExecutor(program(PROGRAMS[name]), STATIC)
            state = executor.new_state(cache)
            executor.summarize(state, cache)
            found.append((state.fields, *executor.decode(q, state, cache)))
        (fields, out, lists), (fields_on_lanes, out_on_lanes, lists_on_lanes) = found
        assert all(torch.equal(fields[key], fields_on_lanes[key]) for key in fields)
        assert lists.to_list() == lists_on_lanes.to_list()
        torch.testing.assert_close(out, out_on_lanes, atol=1e-6, rtol=0)
