"""Whole decode steps of published models with random weights on one GPU: dense against sparse, and where time goes.

    PYTHONPATH=... python3 benchmarks/end_to_end.py [--out DIR] [--only MODEL ...] [--rehearse] [--again]

Every model is first compared with transformers on a tiny model of its kind. Rows go to DIR/end_to_end.json as they
come (of a rehearsal: DIR/rehearsal.json), each with its conditions; rows that are there already are skipped, `--again`
measures them anew. Dense is measured anew whenever a sparse row of its case is. MiniMax-M2 does not fit one GPU: the
attention of one of four tensor-parallel shards is measured, its whole step predicted and labelled so.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import time
import traceback
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402

from vortexlab.dsl.ir import Program, Static  # noqa: E402
from vortexlab.evaluator.decode_layers import DecodeModel, Glue  # noqa: E402
from vortexlab.evaluator.decode_models import StepBytes, published_config, random_model, step_bytes  # noqa: E402
from vortexlab.evaluator.decode_runner import Caches, DecodeRunner, DenseReader, ProgramReader  # noqa: E402
from vortexlab.evaluator.decode_times import (  # noqa: E402
    attention_bytes,
    attention_ms,
    ideal_ms,
    predicted_step,
    room_needed,
    selected_pages,
    time_step,
)
from vortexlab.kernels.devices import get_device  # noqa: E402
from vortexlab.search_spaces import load  # noqa: E402

#: Tokens that a step reads: sink, recent and chosen pages together.
BUDGET = 2048
SINK, RECENT = 1, 2
STEPS, SEED = 64, 0
#: Bytes left free when the largest batch is sought: workspaces, graphs, logits.
MARGIN = 6e9
#: Largest relative error of logits against transformers, fp32 and bf16.
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 5e-2}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Case:
    """`batch` 0: the largest that fits."""

    model: str
    context: int
    batch: int
    programs: tuple[tuple[str, int], ...] = (("quest", 16), ("quest", 64), ("centroid", 16))


CASES = (
    Case("qwen3-1.7b", 32768, 32),
    Case("qwen3-8b", 32768, 16),
    Case("llama-3.1-8b", 32768, 16),
    Case("qwen3-30b-a3b", 32768, 16),
    Case("glm-4.7-flash", 32768, 0, (("mla_block", 16), ("mla_block", 64), ("mla_subpage", 64))),
)
#: MiniMax-M2: 48 query and 8 KV heads of 128 channels over four shards, 62 layers; bytes of the whole model in bf16.
SHARDS, MINIMAX_LAYERS, MINIMAX = 4, 62, Static(2, 6, 128, 128**-0.5, 0, 62)
MINIMAX_BYTES = StepBytes(
    weights=2 * (200064 * 3072 + 62 * (3072 * (48 + 8 + 8) * 128 + 48 * 128 * 3072 + 256 * 3072)),
    expert=2 * 3 * 3072 * 1536, total=256, per_token=8, expert_layers=62,
)  # fmt: skip


def bound(name: str, page: int) -> Program:
    return load(name).bind({"page": page, "budget": BUDGET // page - SINK - RECENT, "sink": SINK, "recent": RECENT})


class Book:
    """The rows so far, written to the file whenever one is added."""

    def __init__(self, path: Path, again: bool) -> None:
        self.path = path
        found = json.loads(path.read_text()) if path.is_file() and not again else {}
        self.rows: list[dict[str, Any]] = [row for row in found.get("rows", []) if "error" not in row]

    def has(self, model: str, program: str) -> bool:
        return any(row["model"] == model and row["program"] == program for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        row = {
            **row, "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.processor(),
            "torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version(),
            "seed": SEED, "at": time.strftime("%Y-%m-%dT%H:%M:%S"),
        }  # fmt: skip
        self.rows = [x for x in self.rows if (x["model"], x["program"]) != (row["model"], row["program"])] + [row]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps({"rows": self.rows}, indent=1))
        print(line(row), flush=True)


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    name = f"{row['model']:14} {row['program']:15}"
    if "error" in row:
        return f"{name} ERROR {row['error']}"
    if row["program"] == "check":
        return f"{name} relative error {row['relative_error']:.1e} over {row['steps']} steps"
    text = f"{name} {row['context']:8.0f} x {row['batch']:3}  {row['kind']}"
    if "step_ms" in row:
        text += f" step {row['step_ms']:7.3f} ms"
    if "attention_ms" in row:
        text += f" attention {row['attention_ms']:7.3f} ms"
    if "rest_us_a_layer" in row:
        text += f" products {row['product_ms']:6.3f} ms rest {row['rest_us_a_layer']:5.1f} us a layer"
        if "unexplained_us_a_layer" in row:
            text += f" (unexplained {row['unexplained_us_a_layer']:+.1f})"
    if "ideal_ms" in row:
        text += f" ideal {row['ideal_ms']:7.3f} ms ({row['of_ideal']:.2f} of it)"
    return text + (f" speed-up {row['speedup']:.2f}" if "speedup" in row else "")


def free() -> None:
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


# correctness


@torch.no_grad()
def check(name: str) -> dict[str, Any]:
    """Captured, compiled steps of a tiny model of this kind against transformers' own, from the first token on.

    Dense, then a program whose budget covers the context. Experts are in bf16, which grouped products need, and all of
    them are chosen: rounding would let the two choose differently.
    """
    steps, batch = 48, 3
    wide: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 128, "hidden_size": 256}
    latent: dict[str, Any] = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "hidden_size": 256}
    experts = published_config(name).to_dict().get("num_experts_per_tok") is not None
    changes = (latent if "glm" in name else wide) | ({"num_experts_per_tok": 8} if experts else {})
    config = published_config(name, small=True, **changes, initializer_range=0.05)
    dtype = torch.bfloat16 if experts else torch.float32
    model = random_model(config, DEVICE, dtype, SEED)
    generator = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(0, config.vocab_size, (batch, steps), generator=generator).to(DEVICE)
    stock = model(tokens).logits.float()
    made, glue = DecodeModel.of(model, 128, name), Glue(compiled=DEVICE.type == "cuda")
    worst = {}
    for kind in ("dense", "program"):
        caches = Caches.empty(made.statics(), batch, 128, DEVICE, dtype)
        reader: Any = DenseReader(made.statics(), caches)
        if kind == "program":
            reader = ProgramReader(bound("mla_block" if "glm" in name else "quest", 16), made.statics(), caches)
        runner = DecodeRunner(made, caches, reader, glue)
        runner.capture()
        errors = []
        for at in range(steps):
            runner.tokens.copy_(tokens[:, at])
            error = (runner.step().float() - stock[:, at]).norm() / stock[:, at].norm()
            errors.append(float(error))
        worst[kind] = max(errors)
    row = {"model": name, "program": "check", "relative_error": max(worst.values()), "worst": worst, "steps": steps,
           "dtype": str(dtype).removeprefix("torch."), "tolerance": TOLERANCE[dtype]}  # fmt: skip
    if not row["relative_error"] <= row["tolerance"]:
        row["error"] = f"logits differ from those of transformers: relative errors {worst}"
    return row


# times


def largest_batch(statics: list[Static], context: int, programs: tuple[tuple[str, int], ...]) -> int:
    """Requests whose keys, values and summaries fit the free memory."""
    available = torch.cuda.mem_get_info()[0] - MARGIN if DEVICE.type == "cuda" else 1e6
    token = sum(s.kv_heads * (s.head_dim + (0 if s.latent else s.value_dim)) * 2 for s in statics)
    keys = sum(s.kv_heads * s.head_dim * 2 for s in statics)
    # Summary vectors a page: two for Quest's envelope, one for a mean, one for each part of a page.
    vectors = {"quest": 2, "centroid": 1, "mla_block": 1, "mla_subpage": 4}
    summaries = max(keys * vectors[name] / page for name, page in programs)
    return max(1, int(available // (context * (token + summaries))))


def run_case(case: Case, book: Book, rehearse: bool) -> None:
    """Dense, then every program, over the same caches."""
    names = [f"{name} P{page}" for name, page in case.programs]
    if all(book.has(case.model, name) for name in ["dense", *names]):
        return
    began = time.perf_counter()
    context = 512 if rehearse else case.context
    config = published_config(case.model, small=rehearse)
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    model = DecodeModel.of(random_model(config, DEVICE, dtype, SEED), context, case.model)
    free()
    statics = model.statics()
    batch = 2 if rehearse else case.batch or largest_batch(statics, context, case.programs)
    caches = Caches.empty(statics, batch, context, DEVICE, dtype, seed=SEED)
    glue, steps = Glue(compiled=DEVICE.type == "cuda"), 3 if rehearse else STEPS
    known, weights = get_device("h200" if DEVICE.type == "cuda" else "cpu"), step_bytes(model)
    print(f"{case.model}: made in {time.perf_counter() - began:.1f} s, batch {batch}", flush=True)
    start, dense_ms = context - room_needed(steps) - 1, None
    for name, page in [("dense", 0), *case.programs]:
        row: dict[str, Any] = {
            "model": case.model, "program": f"{name} P{page}" if page else name, "kind": "measured", "batch": batch,
            "capacity": context, "block": caches.layers[0].block, "dtype": str(dtype).removeprefix("torch."),
            "weights": "random", "rehearsal": rehearse,
        }  # fmt: skip
        if page and book.has(case.model, row["program"]):
            continue
        began = time.perf_counter()
        try:
            caches.fill(start, SEED)
            program = bound(name, page) if page else None
            reader: Any = DenseReader(statics, caches)
            if program is not None:
                reader = ProgramReader(program, statics, caches)
            runner = DecodeRunner(model, caches, reader, glue)
            times = time_step(runner, steps)
            pages = None if program is None else selected_pages(caches, reader.lists, page)
            read = attention_bytes(program, statics[0], round(times.context), batch, known, pages)
            ideal = ideal_ms(weights.read(batch), read, len(statics), known)
            row |= times.to_json() | {
                "knobs": dict(load(name).defaults) | {"page": page, "budget": BUDGET // page - SINK - RECENT}
                if page else {},
                "pages_read": pages, "weight_bytes": weights.read(batch), "attention_bytes_a_layer": read,
                "ideal_ms": ideal, "of_ideal": ideal / times.step_ms, "tokens_a_second": 1e3 * batch / times.step_ms,
                "finite": bool(runner.step().isfinite().all()),
            }  # fmt: skip
            if page:
                row |= {"dense_ms": dense_ms, "speedup": dense_ms / times.step_ms} if dense_ms else {}
            else:
                dense_ms = times.step_ms
            if DEVICE.type == "cuda":
                caches.lengths.fill_(start)
                row["kernels"] = kernel_table(runner)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
            row["where"] = traceback.format_exc()[-1500:]
        runner = reader = None  # type: ignore[assignment]
        free()
        row["seconds"] = time.perf_counter() - began
        book.add(row)


def kernel_table(runner: DecodeRunner, most: int = 16) -> list[dict[str, Any]]:
    """Kernels of one step by their share of its time, as the profiler sees a replay; none where it cannot look."""
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            runner.step()
            torch.cuda.synchronize()
    except RuntimeError as error:
        return [{"error": str(error)[:200]}]
    found: dict[str, list[float]] = {}
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            found.setdefault(event.name[:100], []).append(event.device_time)
    ranked = sorted(found.items(), key=lambda item: -sum(item[1]))[:most]
    return [{"kernel": name, "calls": len(times), "us": sum(times)} for name, times in ranked]


def run_minimax(book: Book, rehearse: bool) -> None:
    """Attention of one of four shards, measured; the whole step, predicted."""
    model, context, batch = "minimax-m2", 512 if rehearse else 32768, 2 if rehearse else 32
    layers = 2 if rehearse else MINIMAX_LAYERS
    programs = CASES[0].programs
    for name, page in programs:
        row = predicted_step(bound(name, page), MINIMAX, layers, MINIMAX_BYTES, context, batch, SHARDS, "h200")
        row |= {"model": model, "program": f"predicted {name} P{page}", "context": context, "batch": batch}
        book.add(row | {"shards": SHARDS})
    names = [f"shard {name} P{page}" for name, page in programs]
    if all(book.has(model, name) for name in ["shard dense", *names]):
        return
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    statics = [replace(MINIMAX, layer=layer) for layer in range(layers)]
    caches = Caches.empty(statics, batch, context, DEVICE, dtype, seed=SEED)
    caches.fill(context, SEED)
    generator = torch.Generator(DEVICE).manual_seed(SEED)
    shape = (batch, MINIMAX.kv_heads * MINIMAX.group, MINIMAX.head_dim)
    queries = [torch.randn(shape, device=DEVICE, generator=generator).to(dtype) for _ in statics]
    known, dense_ms = get_device("h200" if DEVICE.type == "cuda" else "cpu"), None
    for name, page in [("dense", 0), *programs]:
        row = {
            "model": model, "program": f"shard {name} P{page}" if page else "shard dense", "kind": "measured",
            "context": context, "batch": batch, "layers": layers, "shards": SHARDS, "block": caches.layers[0].block,
            "dtype": str(dtype).removeprefix("torch."), "what": "attention of one tensor-parallel shard",
            "rehearsal": rehearse,
        }  # fmt: skip
        try:
            reader: Any = ProgramReader(bound(name, page), statics, caches) if page else DenseReader(statics, caches)
            ms = attention_ms(reader, queries, DEVICE)
            pages = selected_pages(caches, reader.lists, page) if page else None
            read = attention_bytes(bound(name, page) if page else None, MINIMAX, context, batch, known, pages)
            ideal = ideal_ms(0, read, layers, known)
            row |= {"attention_ms": ms, "us_a_layer": 1e3 * ms / layers, "pages_read": pages, "ideal_ms": ideal}
            row |= {"of_ideal": ideal / ms} | ({"speedup": dense_ms / ms} if page and dense_ms else {})
            dense_ms = dense_ms if page else ms
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
        reader = None
        free()
        book.add(row)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=os.environ.get("OUT", "."))
    models = [case.model for case in CASES] + ["minimax-m2"]
    parser.add_argument("--only", action="append", choices=models, help="may be given again; default all")
    parser.add_argument("--rehearse", action="store_true", help="tiny models and contexts, on the CPU too")
    parser.add_argument("--again", action="store_true", help="measure rows anew that are in the file")
    options = parser.parse_args()
    if DEVICE.type == "cpu" and not options.rehearse:
        parser.error("there is no GPU; --rehearse runs tiny models on the CPU")
    began = time.perf_counter()
    file = "rehearsal.json" if options.rehearse else "end_to_end.json"
    book = Book(Path(options.out) / file, options.again)
    for name in options.only or models:
        if name == "minimax-m2":
            run_minimax(book, options.rehearse)
            continue
        if not book.has(name, "check"):
            try:
                row = check(name)
            except Exception as error:
                row = {"model": name, "program": "check", "error": f"{type(error).__name__}: {str(error)[:300]}",
                       "where": traceback.format_exc()[-1500:]}  # fmt: skip
            book.add(row)
            free()
        try:
            run_case(next(case for case in CASES if case.model == name), book, options.rehearse)
        except Exception as error:
            book.add({"model": name, "program": "case", "error": f"{type(error).__name__}: {str(error)[:300]}",
                      "where": traceback.format_exc()[-1500:]})  # fmt: skip
        free()
    print("\n".join(line(row) for row in book.rows if row["model"] in (options.only or models)))
    failed = any("error" in row for row in book.rows)
    print(f"{time.perf_counter() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
