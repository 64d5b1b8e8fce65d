"""Decode attention over latent keys (MLA) and over fp8 caches on a GPU: checked first, then timed; one JSON file.

    PYTHONPATH=... python3 benchmarks/mla.py [--out DIR] [--seconds 110]

Checks: dense and listed attention on fresh random inputs against torch in float64. Times: medians over replays of CUDA
graphs, caches of several layers rotated past L2, blocks shuffled in their pools, in the geometry of GLM-4.7-Flash (20
query heads, keys of 512 latent and 64 rotary channels) and, for fp8, in that of Qwen3-8B (32 query and 8 KV heads of
128 channels). Bandwidths stand beside that of a copy measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import peers
import torch
import triton
from gpu_times import CALLS, kernel_times, replay_us
from torch import Tensor

from vortexlab.dsl.ir import Static
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import PageLists
from vortexlab.kernels.gpu import launch
from vortexlab.kernels.gpu.attention import attend
from vortexlab.kernels.gpu.executor import TritonExecutor
from vortexlab.kernels.gpu.latent import LatentShape, attend_latent, latent_splits
from vortexlab.kernels.precision import NAMES, cast
from vortexlab.search_spaces import load

HEADS, LATENT, ROTARY = 20, 512, 64
MLA = Static(1, HEADS, LATENT + ROTARY, 256**-0.5, latent=LATENT)
GQA = Static(8, 4, 128, 128**-0.5)
CONTEXT, PAGE = 32768, 16
#: Bytes of keys and values that one graph goes through: many times the L2 cache.
ROTATED_BYTES = 1.0e9
#: Largest error that is one of rounding, of a row's RMS: half a unit of a bf16 number of 4 to 8 times it is 2**-6.
WORST = 1.25 * 2.0**-6
E4M3 = torch.float8_e4m3fn


@dataclass
class Cell:
    """Caches and queries of several layers."""

    static: Static
    caches: list[PagedKV]
    queries: list[Tensor]

    @staticmethod
    def make(
        static: Static, batch: int, length: int, dtype: torch.dtype, *, page: int = PAGE, layers: int = 0, seed: int = 0
    ) -> Cell:
        """`layers` 0: as many as fill `ROTATED_BYTES`, at least 2."""
        blocks = -(-length // page)
        size = batch * length * token_bytes(static, dtype)
        caches, queries = [], []
        for number in range(layers or max(2, min(24, -(-int(ROTATED_BYTES) // size)))):
            generator = torch.Generator(device="cuda").manual_seed(1000 * seed + number)
            shape = (batch * blocks, page, static.kv_heads, static.head_dim)
            made = {"device": "cuda", "dtype": torch.bfloat16, "generator": generator}
            k = cast(torch.randn(shape, **made), dtype).transpose(1, 2)
            v = k[..., : static.latent] if static.latent else cast(torch.randn(shape, **made), dtype).transpose(1, 2)
            table = torch.randperm(batch * blocks, device="cuda", generator=generator).int().view(batch, blocks)
            lengths = torch.full((batch,), length, dtype=torch.int32, device="cuda")
            caches.append(PagedKV(k, v, table, lengths, page))
            queries.append(torch.randn(batch, static.kv_heads * static.group, static.head_dim, **made))
        return Cell(static, caches, queries)

    def timed(self, work: Callable[[int], Any]) -> float:
        """Median microseconds of `work(layer)`, over a graph that goes through the layers and does `CALLS` at least."""
        count = len(self.caches)
        calls = count * -(-CALLS // count)

        def every() -> None:
            for number in range(calls):
                work(number % count)

        return replay_us(every) / calls

    def facts(self) -> dict[str, Any]:
        cache = self.caches[0]
        return {
            "batch": cache.batch, "context": int(cache.lengths[0]), "dtype": NAMES[cache.k.dtype], "page": cache.block,
            "layers_rotated": len(self.caches), "geometry": asdict(self.static),
        }  # fmt: skip


def token_bytes(static: Static, dtype: torch.dtype) -> int:
    """Bytes of keys and values of one token and layer."""
    width = static.head_dim if static.latent else 2 * static.head_dim
    return static.kv_heads * width * torch.empty(0, dtype=dtype).element_size()


def exact(q: Tensor, cache: PagedKV, lists: PageLists | None, scale: float, page: int) -> Tensor:
    """Attention in float64, from its definition; one list per KV head."""
    out = []
    for row in range(cache.batch):
        k, v = (x.to(torch.float32).double() for x in cache.dense(row))
        query = q[row].double().view(cache.kv_heads, -1, q.shape[-1])
        logits = query @ k.transpose(1, 2) * scale
        if lists is not None:
            token = torch.arange(k.shape[1], device=k.device) // page
            for head in range(cache.kv_heads):
                listed = lists.pages[row, head, 0, : int(lists.counts[row, head, 0])]
                logits[head, :, ~torch.isin(token, listed.to(token.dtype))] = float("-inf")
        out.append((logits.softmax(-1) @ v).flatten(0, 1))
    return torch.stack(out)


def check(dtypes: list[str]) -> list[dict[str, Any]]:
    """Worst errors relative to each row's RMS, dense and listed; `ok` tells that they are those of rounding."""
    rows: list[dict[str, Any]] = []
    for static, dtype, attention in (
        (MLA, torch.bfloat16, attend_latent), (MLA, torch.float16, attend_latent), (MLA, E4M3, attend_latent),
        (MLA, torch.float8_e5m2, attend_latent), (GQA, E4M3, attend), (GQA, torch.float8_e5m2, attend),
    ):  # fmt: skip
        if NAMES[dtype] not in dtypes:
            continue
        for page, length in ((16, 3001), (64, 4096), (16, 40)):
            row: dict[str, Any] = {"what": "check", "dtype": NAMES[dtype], "page": page, "context": length,
                                   "latent": static.latent}  # fmt: skip
            try:
                cell = Cell.make(static, 3, length, dtype, page=page, layers=1, seed=length)
                cache, q = cell.caches[0], cell.queries[0]
                q = q.half() if dtype == torch.float16 else q
                cache.lengths -= torch.tensor([0, 7, 21], dtype=torch.int32, device="cuda")
                pages = -(-length // page)
                some = torch.rand(3, static.kv_heads, 1, pages, device="cuda") < 0.3
                own = (cache.lengths.long() - 1) // page
                some &= torch.arange(pages, device="cuda") < own[:, None, None, None]
                some.scatter_(3, own[:, None, None, None].expand(-1, static.kv_heads, 1, 1), True)
                worst = 0.0
                for lists in (None, PageLists.from_mask(some)):
                    for splits in (None, 1, 3):
                        found = attention(q, cache, lists, page, static.scale, splits=splits).double()
                        wanted = exact(q, cache, lists, static.scale, page)
                        rms = wanted.square().mean(-1, keepdim=True).sqrt()
                        error = ((found - wanted).abs() / rms).max()
                        worst = max(worst, float(error.nan_to_num(nan=torch.inf)))
                rows.append({**row, "worst": worst, "ok": worst < WORST})
            except Exception as error:
                rows.append({**row, "ok": False, "error": f"{type(error).__name__}: {str(error)[:300]}"})
    return rows


def copy_tb_per_s() -> float:
    """Bytes read and written by a copy of 1 GiB, over its time."""
    x = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)

    def copy() -> None:
        y.copy_(x)

    return 2 * x.numel() / replay_us(copy) / 1e6


def dense_row(cell: Cell, what: str, copy: float, **options: Any) -> dict[str, Any]:
    """Attention over all pages."""
    attention = attend_latent if cell.static.latent else attend
    work = cell.timed(lambda i: attention(cell.queries[i], cell.caches[i], None, PAGE, cell.static.scale, **options))
    read = cell.caches[0].batch * int(cell.caches[0].lengths[0]) * token_bytes(cell.static, cell.caches[0].k.dtype)
    rate = read / work / 1e6
    return {"what": what, **cell.facts(), "us": work, "tb_per_s": rate, "of_copy": rate / copy}


def peer_row(cell: Cell, copy: float) -> dict[str, Any]:
    """FlashInfer's MLA decode of the same memory, the better of its two kernels, and how far ours is from it."""
    cache, found = cell.caches[0], {}
    failures = []
    ours = attend_latent(cell.queries[0], cache, None, PAGE, cell.static.scale).float()
    for backend in ("fa2", "fa3"):
        try:
            run = peers.latent_decode(cell.static, cell.caches, cell.queries, backend)
            difference = float((run(0).float() - ours).norm() / ours.norm())
            if not difference < 1e-2:
                raise AssertionError(f"differs from ours by {difference:.1e} of its norm")
            found[backend] = cell.timed(run)
        except peers.PeerMissing:
            raise
        except Exception as error:
            failures.append(f"{backend}: {type(error).__name__}: {str(error)[:200]}")
    if not found:
        raise RuntimeError("; ".join(failures))
    us = min(found.values())
    rate = cache.batch * int(cache.lengths[0]) * token_bytes(cell.static, cache.k.dtype) / us / 1e6
    return {"what": "MLA dense (FlashInfer)", **cell.facts(), "us": us, "us_by_path": found, "tb_per_s": rate,
            "of_copy": rate / copy, **({"failures": failures} if failures else {})}  # fmt: skip


def sparse_row(cell: Cell, dense_us: float) -> dict[str, Any]:
    """A whole step (update, select, attend) that scores pages by the mean latent key and reads 2,048 tokens."""
    program = load("mla_block")
    pages = 2048 // PAGE
    values = {name: value for name, value in {"page": PAGE, "budget": pages - 3}.items() if name in program.knobs}
    executor = TritonExecutor(program.bind(values), cell.static)
    states = [executor.new_state(cache) for cache in cell.caches]
    for state, cache in zip(states, cell.caches, strict=True):
        executor.summarize(state, cache)
    lists = [executor.decode(*of)[1] for of in zip(cell.queries, states, cell.caches, strict=True)]
    tokens = float(lists[0].tokens(cell.caches[0].lengths, PAGE).double().mean())

    def step(i: int) -> None:
        executor.update(states[i], cell.caches[i])
        executor.decode(cell.queries[i], states[i], cell.caches[i])

    us = cell.timed(step)
    stages = {
        "update": cell.timed(lambda i: executor.update(states[i], cell.caches[i])),
        "attend": cell.timed(lambda i: executor.attend(cell.queries[i], cell.caches[i], lists[i])),
    }
    return {
        "what": "sparse step, mla_block", **cell.facts(), "us": us, "stages": stages,
        "knobs": program.defaults | values, "tokens_read": tokens, "speedup": dense_us / us,
        "kernels": kernel_times(lambda: step(0)),
    }  # fmt: skip


def variants(cell: Cell, copy: float) -> list[dict[str, Any]]:
    """The dense kernels in other tiles, warps, stages and numbers of runs, each checked before it is timed."""
    rows = []
    batch, device = cell.caches[0].batch, cell.queries[0].device
    shared = launch.shared_bytes(device)
    usual = LatentShape.of(LATENT, ROTARY, 2, 2, shared, False)
    tried = ((32, 8, 4), (32, 8, 3), (32, 8, 2), (64, 8, 2), (64, 8, 1), (16, 8, 6))
    shapes = [replace(usual, tile=tile, warps=warps, stages=stages) for tile, warps, stages in tried]
    if launch.is_hopper(device):
        shapes.insert(0, LatentShape.of(LATENT, ROTARY, 2, 2, shared, True))
    small = Cell.make(MLA, 3, 1501, torch.bfloat16, layers=1, seed=1)
    wanted = exact(small.queries[0], small.caches[0], None, MLA.scale, PAGE)
    rms = wanted.square().mean(-1, keepdim=True).sqrt()
    for shape in shapes:
        count = torch.cuda.get_device_properties(0).multi_processor_count
        runs = latent_splits(batch, -(-CONTEXT // shape.tile), count)
        for splits in sorted({runs, min(256, 2 * runs)}):
            row = {
                "what": "variant", "kernel": "Gluon" if shape.hopper else "Triton", "tile": shape.tile,
                "warps": shape.warps, "stages": shape.stages, "splits": splits,
            }  # fmt: skip
            try:
                found = attend_latent(small.queries[0], small.caches[0], None, PAGE, MLA.scale, splits=3, shape=shape)
                worst = float(((found.double() - wanted).abs() / rms).max())
                if not worst < WORST:
                    raise AssertionError(f"off by {worst:.1e} of the RMS")
                rows.append({**dense_row(cell, "variant", copy, shape=shape, splits=splits), **row})
            except Exception as error:
                rows.append({**row, "batch": batch, "error": f"{type(error).__name__}: {str(error)[:120]}"})
    return sorted(rows, key=lambda row: row.get("us", 1e9))


def line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['what']:26} {row.get('dtype', ''):9} batch {row.get('batch', '-'):>3} ERROR {row['error'][:120]}"
    if row["what"] == "check":
        place = f"latent {row['latent']:3} page {row['page']:2} context {row['context']:5}"
        return f"check {row['dtype']:9} {place} {'ok' if row['ok'] else 'WRONG'} worst {row['worst']:.1e}"
    more = f"{row['tb_per_s']:.2f} TB/s, {row['of_copy']:.2f} of copy" if "of_copy" in row else ""
    if "tile" in row:
        more += f"; {row['kernel']}, " + ", ".join(f"{x} {row[x]}" for x in ("tile", "warps", "stages", "splits"))
    if "speedup" in row:
        more = f"{row['speedup']:.2f}x dense, {row['tokens_read']:.0f} tokens read; stages " + ", ".join(
            f"{name} {us:.1f}" for name, us in row["stages"].items()
        )
    return f"{row['what']:26} {row['dtype']:9} batch {row['batch']:3} {row['us']:9.1f} us {more}"


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", default=os.environ.get("OUT", "."))
    parser.add_argument("--seconds", type=float, default=110, help="begin nothing more after this long")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--dtypes", nargs="+", choices=sorted(NAMES.values()), default=sorted(NAMES.values()),
                        help="precisions of the cache that are checked and timed")  # fmt: skip
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/mla.py needs a GPU", file=sys.stderr)
        return 2
    began = time.time()
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(0), "torch": torch.__version__, "triton": triton.__version__,
        "cuda": torch.version.cuda, "python": platform.python_version(), "seeds": "1000 * context + layer, 0 for times",
        "rows": rows,
    }  # fmt: skip
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)

    def attempt(what: str, work: Callable[[], list[dict[str, Any]]], **conditions: Any) -> None:
        """Adds the rows of `work`, or the reason why there are none, and writes the file anew."""
        if time.time() - began > options.seconds:
            rows.append({"what": what, **conditions, "error": "not measured: out of time"})
        else:
            try:
                rows.extend(work())
            except Exception as error:
                rows.append({"what": what, **conditions, "error": f"{type(error).__name__}: {str(error)[:300]}"})
        torch.cuda.empty_cache()
        result["seconds"] = time.time() - began
        (out / "mla.json").write_text(json.dumps(result, indent=1))

    attempt("check", lambda: check(options.dtypes))
    copy = float("nan")
    try:
        copy = result["copy_tb_per_s"] = copy_tb_per_s()
    except Exception as error:
        print(f"copy: {type(error).__name__}: {str(error)[:200]}")

    def latent(batch: int) -> list[dict[str, Any]]:
        cell = Cell.make(MLA, batch, CONTEXT, torch.bfloat16)
        found = [dense_row(cell, "MLA dense", copy)]
        rows.extend(found)
        attempt("MLA dense (FlashInfer)", lambda: [peer_row(cell, copy)], batch=batch)
        return [sparse_row(cell, found[0]["us"])]

    def tried(batch: int) -> list[dict[str, Any]]:
        return variants(Cell.make(MLA, batch, CONTEXT, torch.bfloat16), copy)

    timed = [dtype for dtype in (torch.bfloat16, E4M3) if NAMES[dtype] in options.dtypes]
    for batch in options.batches:
        if torch.bfloat16 in timed:
            attempt("MLA", lambda batch=batch: latent(batch), batch=batch)  # type: ignore[misc]
    for batch in options.batches:
        if torch.bfloat16 in timed and batch in (1, 32):
            attempt("variant", lambda batch=batch: tried(batch), batch=batch)  # type: ignore[misc]
    for batch in options.batches:
        for dtype in timed:
            attempt("GQA dense", lambda b=batch, d=dtype: [dense_row(Cell.make(GQA, b, CONTEXT, d), "GQA dense", copy)],
                    batch=batch)  # type: ignore[misc]  # fmt: skip
        if E4M3 in timed:
            attempt("MLA dense", lambda b=batch: [dense_row(Cell.make(MLA, b, CONTEXT, E4M3), "MLA dense", copy)],
                    batch=batch)  # type: ignore[misc]  # fmt: skip
    for row in rows:
        print(line(row))
    print(f"{result['device']}, torch {result['torch']}, triton {result['triton']}, copy {copy:.2f} TB/s, "
          f"{result['seconds']:.0f} s")  # fmt: skip
    return 1 if any(not row["ok"] for row in rows if row["what"] == "check") else 0


if __name__ == "__main__":
    sys.exit(main())
