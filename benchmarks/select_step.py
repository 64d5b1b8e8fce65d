"""Scoring and selecting pages in one layer's decode step, against FlashInfer's page top-k and torch.topk.

    PYTHONPATH=build/linked python benchmarks/select_step.py --json select.json

Ours is the step without its attention: graph replays of `decode` less those of `attend`, and beside it what each of our
kernels takes on the device. The peers get finished fp32 scores of the same pages and only choose: they have less to do.
32,768 tokens, 32 query and 8 KV heads of 128 channels, bf16, 2,048 tokens read.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import grid_checks
import peers
import records
import torch
from gpu_times import Cell, Geometry, Pool, kernel_times
from programs import TOKENS, bound, executor_of, knobs
from records import Row
from torch import Tensor

KEYS = ("what", "program", "context", "batch", "page")
GEOMETRY, CONTEXT = Geometry(32, 8), 32768
PROGRAM, PAGES, BATCHES = "quest", (16, 64), (1, 8, 32, 64)
OURS, FLASHINFER, TORCH = "score and select (ours)", "page top-k (FlashInfer)", "torch.topk"


class Step:
    """A cell with our executor made ready, and the scores that its summaries give."""

    def __init__(self, cell: Cell, page: int):
        self.cell, self.page = cell, page
        self.program = bound(PROGRAM, page)
        self.executor = executor_of(self.program, cell.geometry)
        self.caches = [cell.cache(layer, page) for layer in range(cell.layers)]
        self.states = [self.executor.new_state(cache) for cache in self.caches]
        for state, cache in zip(self.states, self.caches, strict=True):
            self.executor.summarize(state, cache)

    def ours(self) -> Row:
        lists = [self.executor.decode(*of)[1] for of in zip(self.cell.queries, self.states, self.caches, strict=True)]
        whole = self.cell.timed(lambda i: self.executor.decode(self.cell.queries[i], self.states[i], self.caches[i]))
        attend = self.cell.timed(lambda i: self.executor.attend(self.cell.queries[i], self.caches[i], lists[i]))
        kernels = kernel_times(lambda: self.executor.decode(self.cell.queries[0], self.states[0], self.caches[0]))
        scores = self.scores(0)
        same = agreement(lists[0].to_mask(scores.shape[1]).flatten(0, 2), scores, knobs(PROGRAM, self.page))
        return {"us": whole - attend, "decode_us": whole, "attend_us": attend, "kernels": kernels, "agreement": same}

    def scores(self, layer: int) -> Tensor:
        """Quest's scores fp32 [batch * kv_heads, pages]."""
        keys = self.caches[layer].k
        lo, hi = keys.amin(2), keys.amax(2)
        table = self.cell.table(self.page).long()
        queries = self.cell.queries[layer]
        return torch.cat([quest_scores(q, lo[pages], hi[pages]) for q, pages in zip(queries, table, strict=True)])

    def peer_rows(self) -> tuple[list[Tensor], int]:
        """Scores of every layer, and how many pages the peers choose: all that are read."""
        return [self.scores(layer) for layer in range(self.cell.layers)], TOKENS // self.page

    def flashinfer(self) -> Row:
        peers.flashinfer()
        scores, k = self.peer_rows()
        rows, device = scores[0].shape[0], self.cell.device
        table = self.cell.table(self.page)
        lengths = torch.full((rows,), table.shape[1], dtype=torch.int32, device=device)
        owner = (torch.arange(rows, device=device) // self.cell.geometry.kv_heads).int()
        found = {}
        for name, safe in (("usual", False), ("graph safe", True)):
            works = [peers.page_top_k(one, table, lengths, k, owner, safe) for one in scores]
            found[name] = self.cell.timed(lambda i, works=works: works[i]())  # type: ignore[misc]
        better = min(found, key=found.__getitem__)
        return {"us": found[better], "better": better, "us_by_path": found, "kernels": kernel_times(works[0])}

    def torch_top_k(self) -> Row:
        scores, k = self.peer_rows()
        us = self.cell.timed(lambda i: torch.topk(scores[i], k, dim=1, sorted=False))
        return {"us": us, "kernels": kernel_times(lambda: torch.topk(scores[0], k, dim=1, sorted=False))}


def quest_scores(q: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """One request's scores [kv_heads, pages]: the best over a KV head's queries of the sum of max(q * lo, q * hi).

    `q`: [query_heads, channel]; `lo`, `hi`: [pages, kv_heads, channel].
    """
    lo, hi = lo.float().permute(1, 2, 0), hi.float().permute(1, 2, 0)
    query = q.float().view(lo.shape[0], -1, q.shape[-1])
    # The maximum is q * hi where q is positive, and q * lo elsewhere.
    return (query.clamp(min=0) @ hi + query.clamp(max=0) @ lo).amax(1)


def agreement(mask: Tensor, scores: Tensor, chosen: dict[str, Any]) -> float:
    """Share of our listed pages that the same scores choose in torch, forced pages included."""
    forced = torch.zeros_like(mask)
    forced[:, : chosen["sink"]] = forced[:, mask.shape[1] - chosen["recent"] :] = True
    best = scores.masked_fill(forced, float("-inf")).topk(chosen["budget"], dim=1).indices
    expected = forced.scatter(1, best, True)
    return float((mask & expected).sum() / expected.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    records.add_options(parser, "select_step.json")
    parser.add_argument("--layout", choices=("NHD", "HND"), default="NHD", help="of the KV blocks; NHD")
    options = parser.parse_args()
    conditions = records.conditions(flashinfer=peers.flashinfer_version(), tokens_read=TOKENS, seed=0)
    found = records.Records(options, conditions, KEYS)
    if wrong := grid_checks.check(GEOMETRY, options.layout):
        raise SystemExit(f"not timed, since {'; '.join(wrong)}")
    pool = Pool.make(GEOMETRY, CONTEXT * max(BATCHES), options.layout)
    for batch, page in itertools.product(BATCHES, PAGES):
        if found.is_over:
            break
        step = Step(pool.cell(batch, CONTEXT), page)
        for what, work in ((OURS, step.ours), (FLASHINFER, step.flashinfer), (TORCH, step.torch_top_k)):
            found.measure(step.cell.row(what, page) | {"program": PROGRAM}, work)
            torch.cuda.empty_cache()
    found.write()
    print(*table(found.rows), sep="\n")
    for line in found.errors():
        print("ERROR", line)
    print(", ".join(f"{key} {value}" for key, value in found.conditions.items()))


def table(rows: list[Row]) -> list[str]:
    """Lines for people."""
    lines = [
        f"{PROGRAM}, {GEOMETRY}, {CONTEXT} tokens, us a layer; our kernels on the device in the last column",
        f"{'batch':>5} {'page':>4} {'ours: score + select':>20} {'FlashInfer page top-k':>21} {'torch.topk':>10}",
    ]
    for batch, page in itertools.product(BATCHES, PAGES):
        have = {row["what"]: row for row in rows if "us" in row and (row["batch"], row["page"]) == (batch, page)}
        numbers = [f"{have[what]['us']:.1f}" if what in have else "-" for what in (OURS, FLASHINFER, TORCH)]
        kernels = have.get(OURS, {}).get("kernels", {})
        parts = ", ".join(f"{name} {us:.1f}" for name, us in kernels.items() if len(name) < 24)
        lines.append(f"{batch:5} {page:4} {numbers[0]:>20} {numbers[1]:>21} {numbers[2]:>10}  {parts}")
    return lines


if __name__ == "__main__":
    main()
