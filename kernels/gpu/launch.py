"""Tile sizes and warps of the generated kernels: the same numbers for a launch and for a compilation ahead of time."""

from __future__ import annotations

import re
from typing import Any

import torch
import triton

from vortexlab.kernels.gpu.codegen import Kernel
from vortexlab.kernels.gpu.device import INTERPRETED

#: Elements of the largest tile that a map kernel works on at once, with matrix products and without.
MAP_ELEMENTS, PLAIN_MAP_ELEMENTS = 4096, 2048
#: Elements of a query and its group up to which a warp of a map kernel with matrix products takes twice the pages.
FEW_QUERY = 256
#: Loads of a map kernel that are under way at once: few, since many programs share a processor.
MAP_STAGES = 2
#: Programs of a map kernel for each processor at most, with matrix products and without.
MAP_PROGRAMS, PLAIN_MAP_PROGRAMS = 64, 8
#: Pages up to which the selection kernel keeps a row of one score in registers; half as many where it reads more, or
#: writes more than one list.
WHOLE_ROW = 8192

#: Shared memory that one program (thread block) can have, in bytes: vendors' figures for one block.
SHARED_BYTES = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}


def whole_row(kernel: Kernel) -> int:
    """Pages up to which a selection kernel keeps a row in registers."""
    scores = sum(re.fullmatch(r"b\d+", name) is not None for name in kernel.params)
    more = any(re.fullmatch(r"(entries|weights)\d+", name) for name in kernel.params)
    return max(1, WHOLE_ROW // (1 if scores < 2 and not more else 2) // max(1, kernel.largest // 2))


def shape(kernel: Kernel, capacity: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Tile constants and launch options of a kernel for rows of at most `capacity` pages."""
    if kernel.name in ("summarize", "finish"):
        return {}, {"num_warps": warps(kernel.largest)}
    if kernel.name.startswith("map"):
        elements = MAP_ELEMENTS if kernel.has_products else PLAIN_MAP_ELEMENTS
        tile = max(1, min(128, elements // kernel.largest, triton.next_power_of_2(capacity)))
        # Products run on matrix units: threads are there to address the operands. Other sums stay within a warp.
        # Scores of single tokens hold a page's keys, as operands and as they were stored.
        share = 4 if kernel.has_products and kernel.once <= FEW_QUERY else 2
        fewest = max(4 if kernel.has_products and tile <= 2 else 1, warps(kernel.largest * tile) // share)
        # A learned matrix and the query that it is multiplied with have to fit into registers too.
        return {"TILE": tile}, {"num_warps": max(fewest, warps(kernel.learned)), "num_stages": MAP_STAGES}
    most = whole_row(kernel)
    whole = kernel.name == "choose_whole"
    striding = max(1, WHOLE_ROW // 128, most // 2 // kernel.largest)
    tile = triton.next_power_of_2(min(capacity, most)) if whole else striding
    # As many values are held of a page as scores are read, and then some.
    held = WHOLE_ROW // most * (1 if whole or most == WHOLE_ROW else 2)
    # A row in registers is settled round by round, for which more threads wait less for each other's sums.
    return {"TILE": tile}, {"num_warps": max(4, min(8, warps(4 * tile)) if whole else 1, warps(tile * held))}


def map_programs(kernel: Kernel, tiles: int, rows: int, processors: int) -> int:
    """Programs of a map kernel for each of `rows` rows of `tiles` tiles: enough to fill the processors, and as few as
    end together. A bound, since rows may be far shorter than the cache allows."""
    most = MAP_PROGRAMS if kernel.has_products else PLAIN_MAP_PROGRAMS
    rounds = -(-tiles // min(tiles, -(-most * processors // rows)))
    return -(-tiles // rounds)


def warps(elements: int) -> int:
    """Warps for a largest tile of so many elements: about 32 elements a thread."""
    return max(1, min(16, triton.next_power_of_2(max(1, elements // 1024))))


def is_hopper(device: torch.device) -> bool:
    """Whether kernels in Gluon for compute capability 9.0 run on a device."""
    if device.type != "cuda" or torch.version.hip or INTERPRETED:
        return False
    return torch.cuda.get_device_capability(device) == (9, 0)


def chained(device: torch.device) -> dict[str, Any]:
    """Launch options of kernels that begin with `start_after_previous`: their launches overlap from sm_90 on."""
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (9, 0):
        return {"CHAINED": False}
    return {"CHAINED": True, "launch_pdl": True}


def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; a small number in the interpreter, so that splitting is exercised."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def shared_bytes(device: torch.device) -> int:
    """Shared memory that one program can have; in the interpreter as much as on a Hopper GPU."""
    if device.type != "cuda":
        return SHARED_BYTES["sm_90"]
    properties = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]
