"""Prefill on the Triton executor: equal to the reference in the interpreter, and what its kernel compiles to."""

from __future__ import annotations

import pytest
from compiled_prefill import compiled
from triton_runs import interpreted

from vortexlab.kernels.gpu.launch import SHARED_BYTES

HEADS = (8, 4, 128)


def test_prompts_equal_the_reference() -> None:
    assert interpreted("prompts") == []


def test_planted_faults_are_found() -> None:
    found = interpreted("prompt_faults")
    assert len(found) == 8
    assert not [fault for fault, disagreement in found.items() if disagreement is None]


@pytest.mark.parametrize(("page", "block", "per_head"), [(16, 64, False), (64, 64, False), (128, 64, True)])
def test_prefill_multiplies_on_whole_warpgroups_without_spilling(page: int, block: int, per_head: bool) -> None:
    found = compiled("sm_90", page, block, HEADS, per_head)
    assert found["ptx"].count("wgmma.mma_async") >= 24 and "cp.async" in found["ptx"]
    assert found["spilled_bytes"] == 0 and found["shared_bytes"] <= SHARED_BYTES["sm_90"]
    # Of the tiles without a mask: products run asynchronously and are waited for once a tile. An assembler that finds
    # too few registers puts a wait behind every product.
    assert found["loop"].count("w") == 1 and found["loop"].count("p") == 12


@pytest.mark.slow
@pytest.mark.parametrize("target", SHARED_BYTES)
def test_prefill_fits_every_target(target: str) -> None:
    found = compiled(target, 16, 32, (2, 3, 80))
    assert 0 < found["shared_bytes"] <= SHARED_BYTES[target] and found["spilled_bytes"] <= 256
