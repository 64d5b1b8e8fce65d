"""Checks prefill attention on a GPU, then times it at 64k tokens against the best dense prefill of torch.

    PYTHONPATH=... python3 benchmarks/prefill.py [--out DIR] [--seconds 140] [--workers 12]

Checks: every tile configuration that is timed, and others in all precisions, on fresh random inputs against float64
torch; whole prompts of a program against the torch executor. Times: medians of CUDA events. Dense is the fastest of
SDPA's flash and cuDNN backends on contiguous memory, and this project's own kernel on a shuffled paged cache; sparse
reads 10 % of the causal blocks, chosen at random, its own block among them. `whole` is `TritonExecutor.prefill` with
summaries, pooling and selection, by the clock on the wall. Writes prefill.json; a short table comes last.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

import torch  # noqa: E402
import triton  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.nn.functional import scaled_dot_product_attention  # noqa: E402

from vortexlab.dsl import parse  # noqa: E402
from vortexlab.dsl.ir import Static  # noqa: E402
from vortexlab.kernels.cache import PagedKV  # noqa: E402
from vortexlab.kernels.executor import PageLists  # noqa: E402
from vortexlab.kernels.gpu.executor import TritonExecutor  # noqa: E402
from vortexlab.kernels.gpu.prefill import Blocks, PrefillShape, attend_prefill  # noqa: E402
from vortexlab.kernels.torch_executor import TorchExecutor  # noqa: E402

DEVICE, TOKENS, SHARE = "cuda", 65536, 0.1
GEOMETRIES = ((32, 8, 128), (16, 8, 128))
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
#: Tile configurations that are tried; the first is what 64 and more queries get by default.
SHAPES = (
    PrefillShape(128, 128, 64, 8, 3),
    PrefillShape(128, 128, 128, 8, 2),
    PrefillShape(128, 128, 64, 8, 4),
    PrefillShape(64, 128, 64, 4, 3),
    PrefillShape(64, 128, 64, 4, 2),
    PrefillShape(128, 128, 32, 8, 3, False, 128),
    PrefillShape(128, 128, 128, 8, 2, True),
)
PROGRAM = """
@program(page={block}, block={block})
class TenPercent:
    def summarize(k): return dict(centre=k.mean(token))
    def pool(q): return q.mean(query)
    def score(q, s): return dot(q, s.centre, channel).max(head)
    def select(score, ctx): return topk(score, ctx.pages // 10)
"""


@dataclass(frozen=True)
class Work:
    """One launch. `block`: queries of a block and tokens of a page, 0 for dense; `page`: tokens of a block of the
    cache; `shape` None is the default."""

    heads: int
    kv_heads: int
    head_dim: int
    block: int
    page: int
    per_head: bool = False
    dtype: str = "bf16"
    lengths: tuple[int, ...] = (TOKENS,)
    shape: PrefillShape | None = None

    def __str__(self) -> str:
        what = f"blocks of {self.block}{', by head' if self.per_head else ''}" if self.block else "dense"
        tiles = "default" if self.shape is None else "/".join(str(int(x)) for x in asdict(self.shape).values())
        return f"{self.heads}/{self.kv_heads} x {self.head_dim} {self.dtype} page {self.page} {what}, tiles {tiles}"

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)


@dataclass
class Inputs:
    q: Tensor
    cache: PagedKV
    blocks: Blocks | None
    lists: PageLists | None

    @staticmethod
    def make(work: Work, seed: int) -> Inputs:
        generator = torch.Generator(DEVICE).manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, device=DEVICE, generator=generator).to(DTYPES[work.dtype])

        q = draw(len(work.lengths), work.heads, max(work.lengths), work.head_dim)
        k, v = ([draw(work.kv_heads, n, work.head_dim) for n in work.lengths] for _ in "kv")
        cache = PagedKV.from_dense(k, v, work.page, shuffle_seed=seed)
        if not work.block:
            return Inputs(q, cache, None, None)
        blocks = Blocks.of(work.lengths, work.block)
        first = blocks.touched(work.block)[0].to(DEVICE)
        pages = int(first.max()) + 1
        lists = work.heads // work.kv_heads if work.per_head else 1
        score = torch.rand(len(first), work.kv_heads, lists, pages, device=DEVICE, generator=generator)
        column = torch.arange(pages, device=DEVICE)
        score = score.masked_fill(column > first[:, None, None, None], -1).masked_fill(
            column == first[:, None, None, None], 2
        )
        rank = score.argsort(-1, descending=True).argsort(-1)
        wanted = (SHARE * (first + 1)).ceil()
        return Inputs(q, cache, blocks, PageLists.from_mask(rank < wanted[:, None, None, None]))

    def run(self, work: Work) -> Tensor:
        page = work.block or work.page
        return attend_prefill(
            self.q, self.cache, self.blocks, self.lists, page, work.scale, lengths=work.lengths, shape=work.shape
        )

    def pairs(self, work: Work) -> float:
        """(query, token) pairs that are attended, summed over query heads."""
        if self.blocks is None or self.lists is None:
            return work.heads * sum(n * (n + 1) / 2 for n in work.lengths)
        size = (self.blocks.stops - self.blocks.starts).double().to(DEVICE)
        before = (self.lists.counts.double().mean((1, 2)) - 1) * work.block
        return work.heads * float((size * before + size * (size + 1) / 2).sum())


def check(work: Work) -> dict[str, Any]:
    """The worst error of a few heads against float64, as a share of what the precisions allow; never raises."""
    row: dict[str, Any] = {"work": str(work), "error": ""}
    try:
        inputs = Inputs.make(work, seed=hash(str(work)) % 1000)
        out = inputs.run(work)
        group, worst = work.heads // work.kv_heads, 0.0
        for request, length in enumerate(work.lengths):
            k, v = (x.double() for x in inputs.cache.dense(request))
            for head in sorted({0, group - 1, work.heads - 1}):
                kv = head // group
                seen = torch.ones(length, length, dtype=torch.bool, device=DEVICE).tril()
                if inputs.lists is not None and inputs.blocks is not None:
                    own = (inputs.blocks.rows == request).nonzero()[:, 0].to(DEVICE)
                    member = head % group if work.per_head else 0
                    mask = inputs.lists.to_mask(-(-max(work.lengths) // work.block))[own, kv, member]
                    seen &= mask.repeat_interleave(work.block, 0)[:length].repeat_interleave(work.block, 1)[:, :length]
                q = inputs.q[request, head, :length].double()
                weight = (q @ k[kv].T * work.scale).masked_fill(~seen, float("-inf")).softmax(-1)
                wanted, reach = weight @ v[kv], (weight @ v[kv].abs()).amax(-1, keepdim=True)
                unit = {"bf16": 2.0**-8, "fp16": 2.0**-11, "fp32": 2.0**-19}[work.dtype]
                bound = unit * wanted.abs() + unit / 2 * reach + 1e-6
                if not bool(out[request, head, :length].isfinite().all()):
                    raise ValueError("an output is not finite")
                worst = max(worst, float(((out[request, head, :length].double() - wanted).abs() / bound).max()))
                del seen, weight
            if bool(out[request, :, length:].any()):
                raise ValueError("an output behind the prompt is not 0")
        row["of_bound"] = worst
        if not worst <= 1:
            row["error"] = f"off by {worst:.2f} of the bound"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        row["error"] = f"{type(error).__name__}: {str(error)[:200]} ({where.name}:{where.lineno})"
    torch.cuda.empty_cache()
    return row


def check_program(block: int) -> dict[str, Any]:
    """Whole prompts of small whole numbers, on which scores are exact, against the torch executor."""
    row: dict[str, Any] = {"work": f"program with blocks of {block}", "error": ""}
    try:
        program, static = parse(PROGRAM.format(block=block)).bind(), Static(2, 4, 64, 0.125)
        generator, lengths = torch.Generator().manual_seed(block), (2500, 1, block, block + 1)
        draw = [torch.randint(-3, 4, (2, n, 64), generator=generator).to(DEVICE).bfloat16() for n in lengths]
        cache = PagedKV.from_dense(draw, draw, block, shuffle_seed=1)
        q = torch.randint(-3, 4, (len(lengths), 8, max(lengths), 64), generator=generator).to(DEVICE).bfloat16()
        (out, lists), (wanted, others) = (
            kind(program, static).prefill(q, cache) for kind in (TritonExecutor, TorchExecutor)
        )
        if [x.to_list() for x in lists] != [x.to_list() for x in others]:
            row["error"] = "the lists differ from the torch executor's"
        row["off"] = float((out.float() - wanted.float()).norm() / wanted.float().norm())
        if not row["off"] < 1e-2:
            row["error"] = f"the output is off by {row['off']:.2g} of its norm"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        row["error"] = f"{type(error).__name__}: {str(error)[:200]} ({where.name}:{where.lineno})"
    return row


def timed(run: Callable[[], object], repeats: int = 7) -> float:
    """Median milliseconds."""
    for _ in range(2):
        run()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def on_the_wall(run: Callable[[], object], repeats: int = 7) -> float:
    """Median milliseconds of a call on an idle device until its work is done, host work included."""
    times = []
    for number in range(repeats + 2):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times += [1e3 * (time.perf_counter() - begin)] * (number > 1)
    return statistics.median(times)


def dense_rows(heads: int, kv_heads: int, head_dim: int) -> list[dict[str, Any]]:
    """Torch's causal attention on contiguous memory; `repeated`: keys and values copied to all query heads before."""
    rows = []
    generator = torch.Generator(DEVICE).manual_seed(1)
    q, k, v = (
        torch.randn(1, n, TOKENS, head_dim, device=DEVICE, generator=generator).bfloat16()
        for n in (heads, kv_heads, kv_heads)
    )
    more = [x.repeat_interleave(heads // kv_heads, 1) for x in (k, v)]
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
        for kind, keys, values in (("gqa", k, v), ("repeated", *more)):
            row: dict[str, Any] = {"what": f"SDPA {name}, {kind}", "kind": "dense"}
            try:
                with sdpa_kernel(backend):
                    row["ms"] = timed(
                        lambda keys=keys, values=values, kind=kind: scaled_dot_product_attention(
                            q, keys, values, is_causal=True, enable_gqa=kind == "gqa"
                        )
                    )
                row["tflops"] = 4e-9 * head_dim * heads * TOKENS * (TOKENS + 1) / 2 / row["ms"]
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {str(error)[:200]}"
            rows.append(row)
    return rows


def time_work(work: Work) -> dict[str, Any]:
    kind = "own dense" if not work.block else f"sparse {work.block}" + (" by head" if work.per_head else "")
    row: dict[str, Any] = {"what": str(work), "kind": kind}
    try:
        inputs = Inputs.make(work, seed=2)
        row["ms"] = timed(lambda: inputs.run(work))
        pairs = inputs.pairs(work)
        row["tflops"] = 4e-9 * work.head_dim * pairs / row["ms"]
        row["share_of_pairs"] = pairs / (work.heads * TOKENS * (TOKENS + 1) / 2)
        if inputs.lists is not None:
            blocks = TOKENS // work.block
            row["share_of_blocks"] = float(inputs.lists.counts.double().mean()) * blocks / (blocks * (blocks + 1) / 2)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {str(error)[:200]}"
    torch.cuda.empty_cache()
    return row


def time_program(heads: int, kv_heads: int, head_dim: int, block: int) -> dict[str, Any]:
    """A whole prompt with a program's own choice, and where its time goes."""
    row: dict[str, Any] = {"what": f"{heads}/{kv_heads} x {head_dim} whole prompt", "kind": f"whole {block}"}
    try:
        work = Work(heads, kv_heads, head_dim, 0, block)
        inputs = Inputs.make(work, seed=3)
        executor = TritonExecutor(
            parse(PROGRAM.format(block=block)).bind(), Static(kv_heads, heads // kv_heads, head_dim, work.scale)
        )
        q, cache = inputs.q, inputs.cache
        _, lists = executor.prefill(q, cache)
        counts = torch.stack([item.counts for item in lists]).double()
        row["share_of_blocks"] = float(counts.mean(dim=(1, 2, 3)).sum()) / (len(lists) * (len(lists) + 1) / 2)
        row["ms"] = on_the_wall(lambda: executor.prefill(q, cache))
        blocks, sparse = Blocks.of(work.lengths, block), executor._of_blocks
        state = sparse.new_state(cache)
        pooled = executor._pooled(q, list(work.lengths))
        parts = {
            "summarize": lambda: sparse.summarize(state, cache),
            "pool": lambda: executor._pooled(q, list(work.lengths)),
            "select": lambda: executor._select_blocks(pooled, state, cache, blocks),
        }
        row["parts_ms"] = {name: on_the_wall(part, 3) for name, part in parts.items()}
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        row["error"] = f"{type(error).__name__}: {str(error)[:200]} ({where.name}:{where.lineno})"
    torch.cuda.empty_cache()
    return row


def timed_works() -> list[Work]:
    """What is timed, the most telling first."""
    works = []
    for shape in (None, *SHAPES):
        for number, geometry in enumerate(GEOMETRIES):
            tuning = shape is not None
            for block, per_head in ((0, False), (64, False), (128, False), (64, True), (128, True)):
                if tuning and (number or per_head or (shape.precise and block == 128)):
                    continue
                page = block or 64
                works.append(Work(*geometry, block, page, per_head, shape=shape))
    return works


def checked_works() -> list[Work]:
    """The same launches on a shorter prompt, and other shapes and precisions on ragged ones."""
    works = [replace(work, lengths=(4096,)) for work in timed_works()]
    for dtype in DTYPES:
        for head_dim, block, page in ((128, 16, 16), (64, 32, 32), (80, 64, 16), (256, 128, 128), (32, 64, 128)):
            lengths = (700, 1, block, block + 1)
            works.append(Work(6, 2, head_dim, block, page, head_dim == 64, dtype, lengths))
            works.append(Work(6, 2, head_dim, 0, page, False, dtype, lengths))
    return works


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=os.environ.get("OUT", "."))
    parser.add_argument("--seconds", type=float, default=140.0, help="time that no new measurement starts after")
    parser.add_argument("--workers", type=int, default=12, help="processes that compile and check")
    parser.add_argument("--check-seconds", type=float, default=80.0, help="time that checks may take; late ones fail")
    options = parser.parse_args()
    began = time.time()
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(0), "torch": torch.__version__, "triton": triton.__version__,
        "cuda": torch.version.cuda, "python": platform.python_version(), "tokens": TOKENS, "batch": 1, "dtype": "bf16",
        "seeds": "fixed by launch", "share_of_causal_blocks": SHARE, "skipped": [], "rows": [],
    }  # fmt: skip
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        waiting = [pool.apply_async(check, (work,)) for work in checked_works()]
        waiting += [pool.apply_async(check_program, (block,)) for block in (64, 128)]
        result["checks"] = []
        for item in waiting:
            try:
                result["checks"].append(item.get(timeout=max(0.1, options.check_seconds - (time.time() - began))))
            except multiprocessing.TimeoutError:
                result["checks"].append({"work": "?", "error": "not checked in time"})
        pool.terminate()
    print(f"checks took {time.time() - began:.0f} s", flush=True)
    for geometry in GEOMETRIES:
        named = {"geometry": "{}/{} x {}".format(*geometry)}
        result["rows"] += [named | row for row in dense_rows(*geometry)]
        result["rows"] += [named | time_program(*geometry, block) for block in (64, 128)]
    for work in timed_works():
        if time.time() - began > options.seconds:
            result["skipped"].append(str(work))
            continue
        geometry = f"{work.heads}/{work.kv_heads} x {work.head_dim}"
        result["rows"].append({"geometry": geometry} | time_work(work))
    result["seconds"] = time.time() - began
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "prefill.json").write_text(json.dumps(result, indent=1))
    return report(result)


def report(result: dict[str, Any]) -> int:
    """The table; 1 when a check failed."""
    wrong = [row for row in result["checks"] if row["error"]]
    for row in wrong[:12]:
        print("ERROR", row["work"], row["error"])
    worst = max((row.get("of_bound", 0.0) for row in result["checks"]), default=0.0)
    print(f"{len(result['checks'])} checks, {len(wrong)} errors; worst error {worst:.2f} of its bound")
    for geometry in dict.fromkeys(row["geometry"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["geometry"] == geometry]
        right = [row for row in rows if "ms" in row]
        dense = min((row["ms"] for row in right if row["kind"] in ("dense", "own dense")), default=float("nan"))
        for row in rows:
            line = f"{geometry} {row['kind']:18}"
            if "ms" not in row:
                print(line, row["what"], row.get("error", ""))
                continue
            more = f" {row['tflops']:6.0f} TFLOP/s" if "tflops" in row else " " * 15
            more += f" {dense / row['ms']:5.2f}x best dense"
            more += f" at {row['share_of_blocks']:.3f} of the blocks" if "share_of_blocks" in row else ""
            parts = " ".join(f"{name} {ms:.2f}" for name, ms in row.get("parts_ms", {}).items())
            print(f"{line} {row['ms']:8.2f} ms{more}  {row['what']} {parts} {row.get('error', '')}")
    print(f"{result['device']}, torch {result['torch']}, triton {result['triton']}, {result['tokens']} tokens, "
          f"{len(result['skipped'])} launches skipped, {result['seconds']:.0f} s")  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
