"""Quantising the KV cache and reading little of it, alone and together.

    PYTHONPATH=build/linked python benchmarks/quantised.py --device cuda --json quantised.json

Dense attention and Quest, each over a cache in the model's precision and in fp8 (e4m3), Quest with its summaries in
bf16 and in fp8. Every row is a program of the language and goes through the evaluator: the speed-up is over dense
attention in the model's precision, at the same lengths as accuracy, on the reference model's tasks and the geometry of
Qwen3-8B.
`--long` times the decode step once more at one length and batch that the reference model does not read.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from records import Records, Row, add_options, conditions

from vortexlab import benching
from vortexlab.dsl import parse
from vortexlab.evaluator.config import EvaluationConfig, device_name, versions
from vortexlab.evaluator.evaluator import Evaluator
from vortexlab.search_spaces.library import source

DENSE = "@program(page=64{})\nclass Dense:\n    def select():\n        return everything()\n"
E4M3 = "fp8_e4m3"
PAGE, TOKENS = 16, 2048


def quest(header: str) -> str:
    """Quest's text with more in its header."""
    text = source("quest")
    before, mark, after = text.partition("default=16))")
    assert mark
    return f"{before}default=16){header}){after}"


def programs() -> dict[str, tuple[str, bool]]:
    """Name -> text, and whether it is Quest."""
    return {
        "dense": (DENSE.format(""), False),
        "dense, KV in fp8": (DENSE.format(f', kv="{E4M3}"'), False),
        "quest": (quest(""), True),
        "quest, summaries in fp8": (quest(f', summaries="{E4M3}"'), True),
        "quest, KV in fp8": (quest(f', kv="{E4M3}", summaries="bf16"'), True),
        "quest, KV and summaries in fp8": (quest(f', kv="{E4M3}", summaries="{E4M3}"'), True),
    }


def knobs(length: int, is_quest: bool) -> dict[str, Any]:
    """An eighth of the context, or 2,048 tokens where that is less."""
    return {"page": PAGE, "budget": max(4, min(TOKENS, length // 8) // PAGE - 3), "sink": 1} if is_quest else {}


def evaluated(config: EvaluationConfig, evaluator: Evaluator, text: str, is_quest: bool) -> Row:
    verdict = evaluator.evaluate(text, knobs(max(config.lengths), is_quest))
    if verdict.speedup is None or verdict.accuracy is None:
        raise ValueError(f"{verdict.status} by gate {verdict.gate}: {verdict.reason}")
    return {
        "speedup": verdict.speedup.to_json(), "accuracy": verdict.accuracy.to_json(), "density": verdict.density,
        "state": verdict.state["state"], "answers": verdict.answers,
    }  # fmt: skip


def timed(config: EvaluationConfig, batch: int, text: str, is_quest: bool) -> Row:
    bound = parse(text).bind(knobs(config.lengths[0], is_quest))
    (row,) = benching.bench_program(bound, config, batch=batch)["rows"]
    if row["failure"]:
        raise ValueError(row["failure"])
    return {"speedup": row["speedup"]}


def show(rows: list[Row]) -> None:
    for row in rows:
        kept = row.get("accuracy")
        figures = [f"{row['speedup'][key]:.2f}" for key in ("value", "low", "high")]
        line = f"{row['what']:<10}{row['program']:<32}{figures[0]:>6} [{figures[1]}, {figures[2]}]"
        if kept:
            line += f"   kept {kept['value']:.3f} [{kept['low']:.3f}, {kept['high']:.3f}]"
            line += f"   density {row['density']:.3f}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "quantised.json")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--dtype", default="bfloat16", help="of the model; bfloat16")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--contexts", type=int, default=6, help="a task; 6")
    parser.add_argument("--long", type=int, nargs=2, metavar=("TOKENS", "BATCH"), help="time this cell too")
    words = parser.parse_args()
    config = EvaluationConfig(
        device=words.device, dtype=words.dtype, lengths=(words.length,), contexts=words.contexts, stop_below=0.0,
        promoted=1.0, compile_for=(), seconds=600.0,
    )  # fmt: skip
    held = Records(
        words,
        conditions(
            evaluated_on=device_name(words.device), dtype=words.dtype, length=words.length, geometry=config.geometry,
            contexts=words.contexts, long=words.long, seed=config.seed, versions=versions(),
            threads=torch.get_num_threads(),
        ),
        ("what", "program"),
    )  # fmt: skip
    with Evaluator(config) as evaluator:
        work: dict[str, Callable[..., Row]] = {"evaluated": partial(evaluated, config, evaluator)}
        if words.long:
            length, batch = words.long
            far = replace(config, lengths=(length,), batch_tokens=length * batch)
            work["timed"] = partial(timed, far, batch)
        for what, call in work.items():
            for name, of in programs().items():
                held.measure({"what": what, "program": name}, partial(call, *of))
    show([row for row in held.rows if "error" not in row])
    print(*held.errors(), sep="\n")


if __name__ == "__main__":
    main()
