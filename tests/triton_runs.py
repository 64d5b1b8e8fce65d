"""Runs the Triton executor in Triton's interpreter and prints what came of it, as JSON.

The interpreter must be chosen before Triton is first imported, so tests start this as a process of its own: a job
(`kind` and its arguments) as JSON in the first argument, the result as the last line of the output.
"""

from __future__ import annotations

import os

if __name__ == "__main__":  # a test that only starts the process may itself need a GPU
    os.environ["TRITON_INTERPRET"] = "1"

import json
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).resolve().parent


def interpreted(kind: str, timeout: float = 600, **arguments: Any) -> Any:
    """The result of one job, run in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_FOLDER), str(_FOLDER.parent), *sys.path])}
    job = json.dumps({"kind": kind, **arguments})
    done = subprocess.run(
        [sys.executable, __file__, job], capture_output=True, text=True, env=environment, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def _case(text: str, seed: int, **limits: Any) -> Any:
    from vortexlab.dsl import parse
    from vortexlab.dsl.testing import random_case

    return random_case(seed, parse(text), **{"max_length": 260, "max_elements": 150_000, **limits})


def _texts(names: list[str], programs: list[int]) -> list[tuple[str, str]]:
    from vortexlab.dsl.testing import random_program
    from vortexlab.search_spaces.library import source

    return [(name, source(name)) for name in names] + [
        (f"random {number}", random_program(random.Random(number))) for number in programs
    ]


def _long_rows(on: bool) -> None:
    """Whether even short rows take the selection kernel that strides over a row."""
    from vortexlab.kernels.gpu import launch

    launch.WHOLE_ROW = 8 if on else 8192


def compare_programs(names: list[str], programs: list[int], seeds: list[int]) -> dict[str, Any]:
    """Seeds by name and random programs by number, each on configurations by seed, against the reference."""
    from differential import compare

    from vortexlab.kernels.gpu.executor import TritonExecutor

    found: dict[str, Any] = {"cases": 0, "determined": 0, "disagreements": []}
    for name, text in _texts(names, programs):
        for seed in seeds if name in names else [int(name.split()[1])]:
            _long_rows(seed % 2 == 1)
            report = compare(TritonExecutor, _case(text, seed))
            found["cases"] += 1
            found["determined"] += report.determined
            found["disagreements"] += [f"{name}, seed {seed}: {item}" for item in report.disagreements[:2]]
    return found


def tuned(folder: str) -> dict[str, Any]:
    """Every kernel by the rule and then with the tiles and splits of a table in `folder`: the worst difference, and
    whether the launch took what the table says."""
    import torch

    from vortexlab.dsl.ir import Static
    from vortexlab.kernels.gpu import tune_trial, tuning

    os.environ["VORTEX_CACHE_DIR"] = folder
    found = {}
    dense, latent = Static(2, 2, 16, 0.25), Static(1, 4, 48, 0.2, latent=32)
    for static in (dense, latent, Static(2, 2, 16, 0.25, prefill=True)):
        for listed in (0, 64):
            problem = tune_trial.Problem(static, "fp32", 2, 128, 16, listed)
            trial = tune_trial.KernelTrial(problem, tune_trial.Pool(torch.device("cpu")))
            usual, rows = trial.usual, trial.usual.rows
            choice = tuning.Choice(32, 8, 1, None if static.prefill else 3, rows and rows * 2)
            entry = tuning.Entry(problem.case, choice, usual, tuning.sources(problem.kernel), 1.0, 2.0, 0.0)
            plain = trial.launch()
            tuning.Table("interpreter", (entry,)).write(tuning.user_table("interpreter"))
            out = trial.launch()
            # Asked for the problem's own case again, the look-up has the launch's answer.
            shape, splits = tuning._chosen(problem.case, torch.device("cpu"), trial.shape(usual))
            used = tuning._chosen.cache_info().hits == 1
            used &= shape == trial.shape(choice) and splits == choice.splits
            name = problem.kernel + (" listed" if listed else "")
            found[name] = {"used": used, "worst": float((out - plain).abs().max())}
            tuning.Table("interpreter", ()).write(tuning.user_table("interpreter"))
    return found


def tune() -> list[dict[str, Any]]:
    """What the tuner finds in tiny cases of every kernel, among a few candidates, compiled ahead by two processes."""
    import torch

    from vortexlab.dsl.ir import Static
    from vortexlab.kernels.gpu import tune, tune_compile, tune_trial

    tune_trial.CALLS, tune_trial.ROTATED_BYTES, tune.REPEATS = 1, 1, 3
    tune.DECODE = {"attend": {32: ((2,), (2,))}, "attend_latent": {32: ((4,), (2,))}}
    device, found = torch.device("cpu"), []
    statics = Static(2, 2, 16, 0.25), Static(1, 4, 48, 0.2, latent=32)
    problems = [tune_trial.Problem(static, "bf16", 2, 64, 16, listed) for static in statics for listed in (0, 32)]
    failed = tune_compile.compile_ahead(problems[:1], device, 60.0, 2)
    assert not failed, failed
    for outcome, _ in tune.tune(problems, device, 1e6, failed=failed):
        found.append(outcome.to_json())
    return found


def latent_programs(names: list[str], dtypes: list[str]) -> dict[str, Any]:
    """Programs for latent keys in the geometry of GLM-4.7-Flash, over caches of several precisions."""
    import torch
    from differential import compare

    from vortexlab.dsl.ir import Static
    from vortexlab.dsl.testing import drawn_case, with_page
    from vortexlab.kernels.gpu.executor import TritonExecutor
    from vortexlab.search_spaces.library import load

    static = Static(1, 20, 576, 256**-0.5, latent=512)
    found: dict[str, Any] = {"cases": 0, "disagreements": []}
    for name in names:
        program = with_page(load(name), 16).bind()
        for dtype in dtypes:
            case = drawn_case(
                program, static, [100, 17], kind="normal", dtype=getattr(torch, dtype), block=8, inputs=found["cases"]
            )
            found["disagreements"] += compare(TritonExecutor, case).disagreements[:2]
            found["cases"] += 1
    return found


def covered_programs(programs: list[int]) -> dict[str, Any]:
    """Random programs of the whole language that the kernels cover; every other one over a cache in fp8. Those that
    attend by themselves go through two steps."""
    import torch
    from differential import compare
    from differential_course import compare_steps

    from vortexlab.dsl import parse
    from vortexlab.dsl.errors import VortexError
    from vortexlab.dsl.testing import FP8_DTYPES, drawn_course, random_case, random_program
    from vortexlab.kernels.compiled import is_plain
    from vortexlab.kernels.gpu.coverage import uncovered
    from vortexlab.kernels.gpu.executor import TritonExecutor
    from vortexlab.kernels.precision import is_fp8, stored_dtype

    found: dict[str, Any] = dict.fromkeys(("cases", "latent", "fp8_caches", "fp8_summaries", "outputs"), 0)
    found["disagreements"] = []
    for number in programs:
        program = parse(random_program(random.Random(number), whole=True))
        dtypes = FP8_DTYPES if number % 2 else (torch.float32, torch.bfloat16)
        case = random_case(number, program, max_length=150, max_elements=40_000, dtypes=dtypes, latent=True)
        if uncovered(case.program, case.static) or case.program.kv_dtype != "auto":
            continue
        try:
            if is_plain(case.program):
                report = compare(TritonExecutor, case)
            else:
                report = compare_steps(TritonExecutor, drawn_course(case, 1, 2))
                found["outputs"] += 1
        except VortexError as error:
            if "is over the limit" in str(error):  # of a tile
                continue
            raise
        found["disagreements"] += [f"{number}: {x}" for x in report.disagreements[:2]]
        found["cases"] += 1
        found["latent"] += case.static.latent > 0
        found["fp8_caches"] += is_fp8(case.keys[0].dtype)
        found["fp8_summaries"] += is_fp8(stored_dtype(case.program, case.keys[0].dtype))
    return found


def fp8_codes() -> dict[str, Any]:
    """By format, how many numbers kernels read, write and round in another way than torch."""
    import torch
    from fp8_kernel import convert

    from vortexlab.kernels.gpu.fp8 import handed
    from vortexlab.kernels.precision import NAMES, cast

    generator = torch.Generator().manual_seed(5)
    size = torch.exp2(torch.randint(-30, 20, (1 << 14,), generator=generator).float())
    bits = torch.randint(-(2**31), 2**31, (1 << 14,), generator=generator).int().view(torch.float32)
    ties = torch.arange(1 << 14) * 2.0**-16
    x = torch.cat([torch.randn(1 << 14, generator=generator) * size, bits, ties, torch.tensor([torch.nan] * 16384)])
    found = {}
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        every = torch.arange(256, dtype=torch.uint8).view(dtype)
        read, code, near = torch.zeros(256), torch.zeros(x.numel(), dtype=torch.uint8), torch.zeros(x.numel())
        convert[(1,)](handed(every), read, x, code, near, FORMAT=NAMES[dtype], N=x.numel())
        wanted = cast(x, dtype).float()
        pairs = ((read, every.float()), (code.view(dtype).float(), wanted), (near, wanted))
        found[str(dtype).removeprefix("torch.")] = [
            int((~((a == b) | (a.isnan() & b.isnan()))).sum()) for a, b in pairs
        ]
    return found


def invariances(names: list[str], seeds: list[int]) -> dict[str, Any]:
    """Layouts, row orders, later tokens and growth change nothing."""
    from differential import Expected, check_causality, check_growth, check_layouts, check_rows

    from vortexlab.kernels.gpu.executor import TritonExecutor

    found: dict[str, Any] = {"cases": 0, "disagreements": []}
    for _, text in _texts(names, []):
        for seed in seeds:
            _long_rows(seed % 2 == 1)
            case = _case(text, seed, max_length=120, max_elements=40_000)
            expected = Expected.of(case)
            for check in (check_layouts, check_rows, check_causality):
                found["disagreements"] += check(TritonExecutor, case, expected).disagreements[:2]
            found["disagreements"] += check_growth(TritonExecutor, case, expected, 3).disagreements[:2]
            found["cases"] += 1
    return found


def repeated_steps() -> dict[str, Any]:
    """Steps of one state: lists shrink and grow, and what lies behind their ends stays -1."""
    import torch

    from vortexlab.dsl import parse
    from vortexlab.dsl.ir import Static
    from vortexlab.kernels.cache import PagedKV
    from vortexlab.kernels.gpu.executor import TritonExecutor

    text = (
        "@program(page=4)\nclass P:\n    def summarize(k):\n        return dict(c=k.sum(token))\n"
        "    def score(q, s):\n        return dot(q, s.c, channel).max(head)\n"
        "    def select(score):\n        return above(score, 0.5)\n"
    )
    k = torch.randint(-2, 3, (1, 2, 60, 16), generator=torch.Generator().manual_seed(3)).float()
    cache = PagedKV.from_dense(k, k, 4, spare=8)
    executor = TritonExecutor(parse(text).bind(), Static(2, 2, 16, 0.25))
    state = executor.new_state(cache)
    executor.summarize(state, cache)
    counts, clean, same = [], True, True
    for step in range(4):
        q = torch.full((1, 4, 16), [1.0, -1.0, 0.0, 2.0][step]) * (torch.arange(16) % 3 - 1)
        fresh = executor.select(q, state, cache)
        _, lists = executor.decode(q, state, cache)
        behind = torch.arange(lists.pages.shape[3]) >= lists.counts[..., None]
        clean &= bool((lists.pages[behind] == -1).all() and (fresh.pages[behind] == -1).all())
        same &= fresh.to_list() == lists.to_list()
        counts.append(lists.counts.flatten().tolist())
    return {"counts": counts, "clean": clean, "same": same}


def some_pages() -> dict[str, Any]:
    """Summaries of chosen physical pages only, for pages that are parts of blocks and pages that span blocks."""
    import torch

    from vortexlab.dsl import parse
    from vortexlab.dsl.ir import Static
    from vortexlab.kernels.cache import PagedKV
    from vortexlab.kernels.gpu.executor import TritonExecutor

    text = (
        "@program(page=8)\nclass P:\n    def summarize(v):\n        return dict(c=v.sum(token))\n"
        "    def score(q, s):\n        return dot(q, s.c, channel).max(head)\n"
        "    def select(score):\n        return topk(score, 2)\n"
    )
    right = {}
    for block in (2, 8, 16):
        k = torch.randn(2, 1, 50, 16, generator=torch.Generator().manual_seed(block))
        cache = PagedKV.from_dense(k, k, block, shuffle_seed=2)
        executor = TritonExecutor(parse(text).bind(), Static(1, 1, 16, 0.25))
        state = executor.new_state(cache)
        state.fields["c"].fill_(torch.nan)
        pages = cache.page_table(8)[1, [0, 3]]
        executor.summarize(state, cache, pages)
        sums = torch.stack([k[1, 0, 8 * p : 8 * p + 8].sum(0) for p in (0, 3)])
        written = (~state.fields["c"][:, 0, 0].isnan()).nonzero().flatten().tolist()
        close = torch.allclose(state.fields["c"][pages, 0], sums, atol=1e-5)
        right[block] = close and written == sorted(pages.tolist())
    return right


def mixed_precisions() -> dict[str, float]:
    """Attention and selection with a query of another precision than the cache: the largest error against the torch
    executor, for each pair."""
    import torch

    from vortexlab.dsl.ir import Static
    from vortexlab.kernels.cache import PagedKV
    from vortexlab.kernels.gpu.executor import TritonExecutor
    from vortexlab.kernels.torch_executor import TorchExecutor
    from vortexlab.search_spaces import library

    program, static = library.load("quest").bind({"page": 8, "budget": 4}), Static(1, 2, 16, 0.25)
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 2, 1, 77, 16, generator=generator)
    q = torch.randn(2, 2, 16, generator=generator)
    worst = {}
    pairs = ("float32", "bfloat16"), ("float32", "float16"), ("bfloat16", "float32"), ("bfloat16", "float16")
    for asked, kept in pairs:
        cache = PagedKV.from_dense(k, v, 8, shuffle_seed=1).stored_in(getattr(torch, kept))
        query, found = q.to(getattr(torch, asked)), []
        for kind in (TritonExecutor, TorchExecutor):
            executor = kind(program, static)
            state = executor.new_state(cache)
            executor.summarize(state, cache)
            found.append(executor.decode(query, state, cache))
        (out, lists), (expected, wanted) = found
        same = lists.to_list() == wanted.to_list() and out.dtype == query.dtype
        worst[f"{asked} {kept}"] = float((out.float() - expected.float()).abs().max()) if same else 1e9
    return worst


def planted_faults() -> dict[str, Any]:
    """For every fault, the first disagreement that it caused, or None."""
    import triton_faults

    return triton_faults.find_all()


def own_outputs() -> list[str]:
    """Disagreements of attention outputs of programs' own with the reference."""
    import triton_outputs

    return triton_outputs.disagreements()


def planted_output_faults() -> dict[str, Any]:
    """As `planted_faults`, for these."""
    import triton_outputs

    return triton_outputs.find_all()


def placed_heads() -> dict[str, Any]:
    """Queries and pools after the kernels and after torch: with and without head norm, several blocks and widths."""
    import torch

    from vortexlab.kernels import place
    from vortexlab.kernels.cache import PagedKV
    from vortexlab.kernels.experts import Mixture
    from vortexlab.kernels.gpu import place as kernels

    generator = torch.Generator()

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    found: dict[str, Any] = {"cases": 0, "worst": 0.0, "untouched": True}
    for rows, channels, dtype in ((3, 40, torch.float32), (1, 64, torch.float32), (5, 100, torch.bfloat16)):
        generator.manual_seed(channels)
        x, residual, weight = (random(*shape).to(dtype) for shape in ((rows, channels), (rows, channels), (channels,)))
        pairs = zip(*(room.add_norm(x, residual, weight, 1e-6) for room in (kernels, place)), strict=True)
        errors = [(a.float() - b.float()).abs().max() / (2.0**-8 if dtype == torch.bfloat16 else 1) for a, b in pairs]
        found["cases"] += 1
        # In bf16 the sums are equal; a norm may round to the other side.
        found["untouched"] &= dtype == torch.float32 or (float(errors[1]) == 0 and float(errors[0]) < 8)
        found["worst"] = max(found["worst"], *(map(float, errors) if dtype == torch.float32 else (0.0,)))
    for tokens, count, channels, has_shared in ((3, 2, 40, True), (4, 3, 64, False), (1, 1, 100, True)):
        generator.manual_seed(channels)
        shared = random(tokens, channels) if has_shared else None
        x = Mixture(random(tokens * count, channels), random(tokens, count), shared)
        residual, weight = random(tokens, channels), random(channels)
        mine, stock = (room.add_norm(x, residual, weight, 1e-6) for room in (kernels, place))
        found["cases"] += 1
        found["worst"] = max(found["worst"], *(float((a - b).abs().max()) for a, b in zip(mine, stock, strict=True)))
    for channels, block in ((16, 4), (24, 16), (64, 8), (20, 2)):
        for norm in (True, False):
            generator.manual_seed(channels + norm)
            k = [random(2, n, channels) for n in (17, 32, 1)]
            before = PagedKV.from_dense(k, [random(*x.shape) for x in k], block, shuffle_seed=1, spare=3)
            qkv, cos, sin = random(3, 10 * channels), random(40, channels), random(40, channels)
            weights = None
            if norm:
                weights = place.Norms(place.Norm(random(channels), 1e-6), place.Norm(random(channels), 1e-1))
            results = []
            for function in (place.place_heads, kernels.place_heads):
                cache = PagedKV(before.k.clone(), before.v.clone(), before.table, before.lengths + 1, block)
                results.append((function(qkv, cache, cos, sin, weights), cache.k, cache.v))
            found["cases"] += 1
            errors = [float((a - b).abs().max()) for a, b in zip(*results, strict=True)]
            found["worst"] = max(found["worst"], *errors)
            after = zip(results[1][1:], (before.k, before.v), strict=True)
            found["untouched"] &= sum(int((x != y).any(-1).sum()) for x, y in after) == 3 * 2 * 2  # rows, heads, k, v
    for rank, latent, rotary, interleaved in ((12, 16, 8, True), (32, 20, 4, False)):
        generator.manual_seed(rank)
        k = [random(1, n, latent + rotary) for n in (17, 32, 1)]
        before = PagedKV.from_dense(k, [x[..., :latent] for x in k], 4, shuffle_seed=1, spare=3)
        down, cos, sin = random(3, rank + latent + rotary), random(40, rotary), random(40, rotary)
        weights = place.Norms(place.Norm(random(rank), 1e-6), place.Norm(random(latent), 1e-1))
        results = []
        for function in (place.place_latent, kernels.place_latent):
            pool = before.k.clone()
            cache = PagedKV(pool, pool[..., :latent], before.table, before.lengths + 1, 4)
            results.append((function(down, cache, cos, sin, weights, interleaved), pool))
        found["cases"] += 1
        found["worst"] = max(found["worst"], *(float((a - b).abs().max()) for a, b in zip(*results, strict=True)))
        found["untouched"] &= int((results[1][1] != before.k).any(-1).sum()) == 3
        q, heads = random(3, 5, latent + rotary), random(3, 5, 7 + rotary)
        mine, stock = (
            room.turn_latent(q.clone(), heads, before.lengths + 1, cos, sin, interleaved) for room in (kernels, place)
        )
        found["cases"] += 1
        found["worst"] = max(found["worst"], float((mine - stock).abs().max()))
        found["untouched"] &= torch.equal(mine[..., :latent], q[..., :latent]) and not torch.equal(mine, q)
    return found


def routed() -> dict[str, Any]:
    """Choices and weights of the kernel and of torch: both kinds of scores, ties, one token and many."""
    import torch

    from vortexlab.kernels import experts
    from vortexlab.kernels.gpu import experts as kernels

    found: dict[str, Any] = {"cases": 0, "same": True, "worst": 0.0}
    for tokens, total, count in ((1, 8, 3), (5, 12, 12), (16, 64, 4), (33, 20, 1)):
        for sigmoid in (True, False):
            for normalised in (True, False):
                generator = torch.Generator().manual_seed(tokens)
                logits = torch.randint(-3, 4, (tokens, total), generator=generator).float()
                bias = torch.randint(-1, 2, (total,), generator=generator) / 4 if sigmoid else None
                how = experts.Routing(total, count, sigmoid, normalised, 1.8)
                mine, stock = kernels.route(logits, bias, how), experts.route(logits, bias, how)
                found["cases"] += 1
                found["same"] &= torch.equal(mine.experts, stock.experts)
                found["worst"] = max(found["worst"], float((mine.weights - stock.weights).abs().max()))
    # Products: experts without rows, with a few, with more than a tile's or a chunk of choices has; sizes that are no
    # multiples of tiles.
    for tokens, total, count, hidden, inner in (
        (3, 8, 2, 40, 24), (40, 3, 2, 200, 72), (1, 5, 1, 128, 64), (150, 4, 2, 24, 16)
    ):  # fmt: skip
        generator = torch.Generator().manual_seed(tokens)
        logits = torch.randn(tokens, total, generator=generator)
        routed = experts.route(logits, None, experts.Routing(total, count, False, True, 1.0))
        x = torch.randn(tokens, hidden, generator=generator)
        gate_up = torch.randn(total, 2 * inner, hidden, generator=generator) / hidden**0.5
        down = torch.randn(total, hidden, inner, generator=generator) / inner**0.5
        results = []
        for room in (kernels, experts):
            middle = room.gated_product(x, gate_up, routed.experts)
            results.append((middle, room.grouped_product(middle, down, routed.experts)))
        found["cases"] += 1
        found["worst"] = max(found["worst"], *(float((a - b).abs().max()) for a, b in zip(*results, strict=True)))
    return found


def decode_runner() -> dict[str, Any]:
    """Logits of a tiny model over the same caches, once on the Triton executor and once on the torch executor."""
    import torch

    from vortexlab.evaluator.decode_layers import DecodeModel
    from vortexlab.evaluator.decode_models import published_config, random_model
    from vortexlab.evaluator.decode_runner import Caches, DecodeRunner, ProgramReader
    from vortexlab.kernels.gpu.executor import TritonExecutor
    from vortexlab.kernels.torch_executor import TorchExecutor
    from vortexlab.search_spaces import load

    model = DecodeModel.of(
        random_model(published_config("qwen3-1.7b", small=True), "cpu", torch.float32, 0), 64, "qwen3-1.7b"
    )
    caches = Caches.empty(model.statics(), 2, 64, "cpu", torch.float32, block=16)
    caches.fill(45, 1)
    program, logits = load("centroid").bind({"page": 8, "budget": 4, "recent": 1}), []
    for make in (TritonExecutor, TorchExecutor):
        caches.lengths.fill_(45)
        runner = DecodeRunner(model, caches, ProgramReader(program, model.statics(), caches, make))
        logits.append(torch.stack([runner.step().clone() for _ in range(5)]))
    return {"worst": float((logits[0] - logits[1]).abs().max())}


def prompts() -> list[str]:
    """Disagreements of prefill with the reference."""
    import triton_prefill

    return triton_prefill.disagreements()


def planted_prefill_faults() -> dict[str, Any]:
    """As `planted_faults`, for prefill."""
    import triton_prefill

    return triton_prefill.find_all()


class _Patches:
    """The interpreter's patches of Triton's language for one launch, each made once.

    It makes them anew in every call of a device function, which takes more than a third of the time.
    """

    def __init__(self, usual: Callable[[Any], Any]):
        self.usual = usual
        self.scopes: dict[frozenset[str], Any] = {}

    def __call__(self, function: Any) -> _Patches:
        names = frozenset(
            value.__name__ for value in function.__globals__.values() if getattr(value, "__name__", "") in _LANGUAGE
        )
        if names not in self.scopes:
            self.scopes[names] = self.usual(function)
        return self

    def restore(self) -> None:
        for scope in reversed(self.scopes.values()):
            scope.restore()
        self.scopes.clear()


_LANGUAGE = ("triton.language", "triton.language.core")


def sglang_steps() -> dict[str, Any]:
    """Decode steps of SGLang's backend on the Triton executor, in a graph's buffers and outside of them: the largest
    difference from the reference, and whether each batch found its page lists where it had left them."""
    import pytest
    import torch

    from tests import sglang_fakes
    from tests.test_sglang import QUEST, expected, started

    patch, differences, kept = pytest.MonkeyPatch(), [], True
    sglang_fakes.install(patch)
    from vortexlab.deploy.sglang import pages
    from vortexlab.kernels.gpu.executor import TritonExecutor

    patch.setattr(pages, "executor_on", lambda device: TritonExecutor)
    server = started(QUEST, decode="full")
    server.backend.init_cuda_graph_state(4, 4)
    for keys, values in server.backend.pool.buffers:
        keys[:16], values[:16] = 0.0, 0.0
    found: dict[Any, int] = {}
    for padded in (2, 4, 0, 2, 4, 2, 0):
        for layer, (q, out) in enumerate(server.decode([1, 2], padded)):
            differences.append(float((out[:2] - expected(server, QUEST, layer, [1, 2], q)).abs().max()))
        lists = server.backend.graphs.lists
        kept &= all(found.setdefault(key, lists[key].pages.data_ptr()) == lists[key].pages.data_ptr() for key in lists)
    assert torch.tensor(differences).isfinite().all()
    return {"difference": max(differences), "kept": kept, "batches": sorted(key[0] for key in found)}


def main() -> None:
    warnings.simplefilter("ignore")
    import torch
    from triton.runtime import interpreter

    interpreter._patch_lang = _Patches(interpreter._patch_lang)
    torch.set_num_threads(1)
    job = json.loads(sys.argv[1])
    kinds: dict[str, Callable[..., Any]] = {
        "compare": compare_programs, "invariances": invariances, "latent": latent_programs,
        "tuned": tuned, "tune": tune,
        "covered": covered_programs, "fp8": fp8_codes, "steps": repeated_steps, "pages": some_pages,
        "faults": planted_faults, "place": placed_heads, "decode_runner": decode_runner, "route": routed,
        "mixed": mixed_precisions, "prompts": prompts, "prompt_faults": planted_prefill_faults,
        "outputs": own_outputs, "output_faults": planted_output_faults, "sglang": sglang_steps,
    }  # fmt: skip
    print(json.dumps(kinds[job.pop("kind")](**job)))


if __name__ == "__main__":
    main()
