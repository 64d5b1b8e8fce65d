"""Decode attention of one layer over a grid of geometries, contexts and batches, against FlashInfer and SDPA.

    PYTHONPATH=build/linked python benchmarks/decode_grid.py --json grid.json
    PYTHONPATH=build/linked python benchmarks/decode_grid.py --full --resume grid.json --json grid.json

The core grid is 36 cells; --full has every cell of both. In each cell and on the same memory: our dense kernel,
FlashInfer's paged decode (planned outside the timing, the better of tensor cores on and off), SDPA on contiguous
keys and values, and whole steps (update, select, attend) of sparse programs that read 2,048 tokens, summary writes
amortised over a page's tokens. Rooflines are bytes that must be read over 4.6 TB/s. Before a geometry is timed its
kernels must be right.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import grid_checks
import peers
import records
import torch
from gpu_times import GEOMETRIES, ROOFLINE, Cell, Geometry, Pool
from programs import PROGRAMS, TOKENS, bound, executor_of, knobs, least_bytes
from records import Records, Row

from vortexlab.kernels.gpu.attention import attend

PAGE = 16
KEYS = ("what", "heads", "kv_heads", "head_dim", "context", "batch", "page", "layout")
CORE = ((4096, 32768, 131072), (1, 8, 32, 64))
FULL = ((4096, 8192, 16384, 32768, 65536, 131072), (1, 4, 8, 16, 32, 64))
DENSE, FLASHINFER, SDPA = "dense (ours)", "dense (FlashInfer)", "dense (SDPA, contiguous)"


def cells(full: bool) -> list[tuple[int, int]]:
    """Contexts and batches, those of the core grid first."""
    core = list(itertools.product(*CORE))
    return core + [cell for cell in itertools.product(*FULL) if cell not in core] if full else core


# what is timed in a cell


def dense(cell: Cell) -> Row:
    """Our kernel over all pages, and how far it is from FlashInfer's where that is installed."""
    caches = [cell.cache(layer, PAGE) for layer in range(cell.layers)]
    us = cell.timed(lambda i: attend(cell.queries[i], caches[i], None, PAGE, cell.scale))
    row: Row = {"us": us, **rates(cell.kv_bytes, us)}
    try:
        theirs = peers.paged_decode(cell, PAGE, tensor_cores=True)(0).float()
    except peers.PeerMissing:
        return row
    ours = attend(cell.queries[0], caches[0], None, PAGE, cell.scale).float()
    row["differs_from_flashinfer"] = difference = float((ours - theirs).norm() / theirs.norm())
    if not difference < grid_checks.BF16:
        raise AssertionError(f"output differs from FlashInfer's by {difference:.1e} of its norm")
    return row


def flashinfer(cell: Cell) -> Row:
    found: dict[str, float] = {}
    failures = []
    for name, cores in (("tensor cores", True), ("CUDA cores", False)):
        try:
            found[name] = cell.timed(peers.paged_decode(cell, PAGE, cores))
        except peers.PeerMissing:
            raise
        except Exception as error:  # a group that one of the two does not cover
            failures.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
    if not found:
        raise RuntimeError("; ".join(failures))
    better = min(found, key=found.__getitem__)
    row = {"us": found[better], "better": better, "us_by_path": found, **rates(cell.kv_bytes, found[better])}
    return row | ({"failures": failures} if failures else {})


def sdpa(cell: Cell) -> Row:
    us = cell.timed(peers.sdpa(cell))
    return {"us": us, **rates(cell.kv_bytes, us)}


def sparse(cell: Cell, name: str, page: int) -> Row:
    """A whole step of a program with the writing of summaries amortised, its stages, and the bytes that it has to read
    at least."""
    program = bound(name, page)
    executor = executor_of(program, cell.geometry)
    caches = [cell.cache(layer, page) for layer in range(cell.layers)]
    states = [executor.new_state(cache) for cache in caches]
    for state, cache in zip(states, caches, strict=True):
        executor.summarize(state, cache)
    # A step whose token completes no page, and beside it the share of one that does: one step in `page` has it.
    resting = [replace(cache, lengths=cache.lengths - 1) for cache in caches]
    lists = [executor.decode(*of)[1] for of in zip(cell.queries, states, resting, strict=True)]
    pages = float(lists[0].counts.double().mean())

    def step(i: int) -> None:
        executor.update(states[i], resting[i])
        executor.decode(cell.queries[i], states[i], resting[i])

    stages = {
        "step": cell.timed(step),
        "update": cell.timed(lambda i: executor.update(states[i], resting[i])),
        "update that writes": cell.timed(lambda i: executor.update(states[i], caches[i])),
        "attend": cell.timed(lambda i: executor.attend(cell.queries[i], resting[i], lists[i])),
    }
    us = stages["step"] + max(0.0, stages["update that writes"] - stages["update"]) / page
    least = least_bytes(program, cell, pages)
    return {
        "us": us, "stages": stages, "program": name, "knobs": knobs(name, page), "pages": pages,
        "density": pages * page / cell.length, **rates(least, us),
    }  # fmt: skip


def rates(least: float, us: float) -> Row:
    """Bytes that must be read, the time of that at the roofline, and which part of the measured time it is."""
    roofline = least / ROOFLINE * 1e6
    return {"least_bytes": least, "roofline_us": roofline, "of_roofline": roofline / us, "tb_per_s": least / us / 1e6}


def subjects() -> Iterator[tuple[str, int, Callable[[Cell], Row]]]:
    """Name, page and work of everything that is timed in a cell."""
    yield DENSE, PAGE, dense
    yield FLASHINFER, PAGE, flashinfer
    yield SDPA, PAGE, sdpa
    for name, page in PROGRAMS:
        yield name, page, lambda cell, name=name, page=page: sparse(cell, name, page)  # type: ignore[misc]


# the table


def cell_of(rows: list[Row], geometry: Geometry, context: int, batch: int) -> dict[tuple[str, int], Row]:
    """The rows of a cell by what and page, errors left out."""
    place = (geometry.heads, geometry.kv_heads, geometry.head_dim, context, batch)
    return {
        (row["what"], row["page"]): row for row in rows
        if "us" in row and (row["heads"], row["kv_heads"], row["head_dim"], row["context"], row["batch"]) == place
    }  # fmt: skip


def ratios(rows: list[Row]) -> dict[tuple[Any, ...], float]:
    """Our dense time over FlashInfer's by (geometry, context, batch): below 1 ours is faster."""
    places = {(r["heads"], r["kv_heads"], r["head_dim"], r["context"], r["batch"]) for r in rows if "us" in r}
    found = {}
    for *geometry, context, batch in sorted(places):
        have = cell_of(rows, Geometry(*geometry), context, batch)
        if (DENSE, PAGE) in have and (FLASHINFER, PAGE) in have:
            place = (str(Geometry(*geometry)), context, batch)
            found[place] = have[DENSE, PAGE]["us"] / have[FLASHINFER, PAGE]["us"]
    return found


def summary(rows: list[Row]) -> Row:
    """Our dense time over FlashInfer's: geometric mean, worst cell, how many cells."""
    found = ratios(rows)
    if not found:
        return {"cells": 0}
    worst = max(found, key=found.__getitem__)
    gated = gate_on(rows)
    return {
        "gate_on": {"steps": len(gated), "dense": sum(x < 1 for x in gated), "least": min(gated, default=1.0)},
        "cells": len(found), "ours_over_flashinfer": math.exp(sum(map(math.log, found.values())) / len(found)),
        "worst": {"geometry": worst[0], "context": worst[1], "batch": worst[2], "ratio": found[worst]},
    }  # fmt: skip


def gate_on(rows: list[Row]) -> list[float]:
    """For every sparse row how fast the gated step is, in speeds of our dense step.

    Where the program is slower, the gate runs the dense step. Summaries are kept up there too: the host knows the
    lengths, so they are written by a graph of their own, in one step of a page's tokens.
    """
    dense = {_cell(row): row["us"] for row in rows if row["what"] == DENSE and "us" in row}
    found = []
    for row in rows:
        if "stages" in row and _cell(row) in dense:
            us = dense[_cell(row)]
            kept = us + row["stages"]["update that writes"] / row["page"]
            found.append(us / min(row["us"], kept))
    return found


def _cell(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("heads", "kv_heads", "head_dim", "context", "batch"))


def table(rows: list[Row], geometry: Geometry, places: list[tuple[int, int]]) -> Iterator[str]:
    """Lines for people: microseconds a layer; of sparse programs with the part of their roofline and the speed-up."""
    names = [f"{name} P{page}" for name, page in PROGRAMS]
    yield f"{geometry}, us a layer; sparse: us, part of roofline, times as fast as the best dense"
    yield (
        f"{'context':>7} {'batch':>5} {'ours':>8} {'roof':>5} {'FlashInfer':>13} {'SDPA':>8} {'ours/FI':>7}"
        + "".join(f" {name:>22}" for name in names)
    )
    for context, batch in sorted(places):
        have = cell_of(rows, geometry, context, batch)
        if not have:
            continue
        us = {what: have[what, PAGE]["us"] for what in (DENSE, FLASHINFER, SDPA) if (what, PAGE) in have}
        line = f"{context:7} {batch:5} {_number(us.get(DENSE)):>8}"
        line += f" {have[DENSE, PAGE]['of_roofline']:5.2f}" if DENSE in us else f" {'-':>5}"
        theirs = _number(us.get(FLASHINFER))
        if FLASHINFER in us:
            theirs += " TC" if have[FLASHINFER, PAGE]["better"] == "tensor cores" else " CC"
        both = DENSE in us and FLASHINFER in us
        line += f" {theirs:>13} {_number(us.get(SDPA)):>8} {us[DENSE] / us[FLASHINFER] if both else math.nan:7.3f}"
        for name, page in PROGRAMS:
            row = have.get((name, page))
            shown = "-"
            if row is not None:
                gain = f" {min(us.values()) / row['us']:6.2f}x" if us else ""
                shown = f"{row['us']:8.1f} {row['of_roofline']:5.2f}{gain}"
            line += f" {shown:>22}"
        yield line


def _number(us: float | None) -> str:
    return "-" if us is None else f"{us:.1f}"


# running


def run(found: Records, options: argparse.Namespace) -> None:
    """Geometry after geometry, so that each pool is made once; cells of the core grid come first in each."""
    for geometry in GEOMETRIES:
        some = options.contexts and list(itertools.product(options.contexts, options.batches))
        places = some or cells(options.full)
        wanted = [(place, what, page) for place in places for what, page, _ in subjects()]
        if all(found.find(**_place(geometry, options, *item)) for item in wanted) or found.is_over:
            continue
        wrong = grid_checks.check(geometry, options.layout)
        if wrong:
            found.sums.setdefault("wrong", {})[str(geometry)] = wrong
            print(f"ERROR {geometry}: not timed, since {'; '.join(wrong)}", flush=True)
            found.write()
            continue
        pool = Pool.make(geometry, max(context * batch for context, batch in places), options.layout)
        for context, batch in places:
            if found.is_over:
                break
            cell = pool.cell(batch, context)
            for what, page, work in subjects():
                found.measure(cell.row(what, page), lambda work=work, cell=cell: work(cell))  # type: ignore[misc]
                torch.cuda.empty_cache()
            found.sums["summary"] = summary(found.rows)
            found.write()
        del pool
        torch.cuda.empty_cache()


def _place(geometry: Geometry, options: argparse.Namespace, place: tuple[int, int], what: str, page: int) -> Row:
    context, batch = place
    return {
        "what": what, "heads": geometry.heads, "kv_heads": geometry.kv_heads, "head_dim": geometry.head_dim,
        "context": context, "batch": batch, "page": page, "layout": options.layout,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    records.add_options(parser, "decode_grid.json")
    parser.add_argument("--full", action="store_true", help="every cell, those of the core grid first")
    parser.add_argument("--contexts", type=int, nargs="+", help="these contexts and --batches instead of the core grid")
    parser.add_argument("--batches", type=int, nargs="+", default=CORE[1])
    parser.add_argument("--layout", choices=("NHD", "HND"), default="NHD", help="of the KV blocks; NHD")
    options = parser.parse_args()
    conditions = records.conditions(
        flashinfer=peers.flashinfer_version(), roofline_bytes_per_s=ROOFLINE, tokens_read=TOKENS, seed=0
    )
    found = Records(options, conditions, KEYS)
    run(found, options)
    found.sums["summary"] = summary(found.rows)
    found.write()
    for geometry in GEOMETRIES:
        print(*table(found.rows, geometry, cells(True)), "", sep="\n")
    print(f"{len(found.rows)} rows; {found.path}; {summary(found.rows)}")
    for line in found.errors():
        print("ERROR", line)
    print(", ".join(f"{key} {value}" for key, value in found.conditions.items()))


if __name__ == "__main__":
    main()
