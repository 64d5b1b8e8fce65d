"""A pattern in vLLM against vLLM's own attention, on this CPU: time to the first token and between later ones.

    python benchmarks/serving.py --python .venv-vllm/bin/python --json serving.json

The checkpoint has random weights, few layers and the attention geometry of Qwen3-8B (32 query and 8 KV heads of 128
channels), so that a step is mostly attention. Quest in pages of 16 reads 2,048 tokens. Both engines are timed in one
run, as `vortex verify --speed` does; the ideal is the keys and values of the context over what must be read of
summaries and selected pages. With `--gate` the dense gate is measured first, and a third engine uses it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from records import conditions

from vortexlab import benching
from vortexlab.deploy import package
from vortexlab.dsl.ir import Program, Static
from vortexlab.evaluator.config import EvaluationConfig, device_name, versions
from vortexlab.kernels.cost import predict
from vortexlab.search_spaces.library import load
from vortexlab.served import Served

TOKENS, PAGE, VOCABULARY = 2048, 16, 512
HEADS, KV_HEADS, CHANNEL = 32, 8, 128


def checkpoint(folder: Path, layers: int, positions: int, dtype: str) -> Path:
    """Random weights in Hugging Face's format."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=512, intermediate_size=1024, num_hidden_layers=layers, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, head_dim=CHANNEL, vocab_size=VOCABULARY, max_position_embeddings=positions,
        tie_word_embeddings=True,
    )  # fmt: skip
    Qwen3ForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def ideal(program: Program, layers: int, length: int, batch: int, dtype: str) -> float:
    """Bytes of a dense step's keys and values over those that a sparse one cannot leave out."""
    static = Static(KV_HEADS, HEADS // KV_HEADS, CHANNEL, CHANNEL**-0.5, 0, layers)
    found = predict(program, static, length, batch, "cpu", dtype={"float32": "fp32", "bfloat16": "bf16"}[dtype])
    least = sum(stage.read for stage in found.stages if stage.name in ("score", "attend"))
    width = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
    return 2 * KV_HEADS * CHANNEL * width * length * batch / least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="the interpreter that vLLM and vortexlab are installed in")
    parser.add_argument("--json", type=Path, default=Path("serving.json"))
    parser.add_argument("--lengths", type=int, nargs="+", default=[16384, 32000])
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--gate", action="store_true", help="measure the dense gate of the pattern and use it")
    words = parser.parse_args()
    knobs = {"page": PAGE, "sink": 1, "recent": 2, "budget": TOKENS // PAGE - 3}
    program = load("quest").bind(knobs)
    with tempfile.TemporaryDirectory(prefix="vortex-serving-") as scratch:
        model = checkpoint(Path(scratch) / "model", words.layers, max(words.lengths) + 256, words.dtype)
        gate = None
        if words.gate:
            config = EvaluationConfig(dtype=words.dtype, geometry=str(model), lengths=tuple(words.lengths))
            gate, _ = benching.measure_gate(program, config, words.batches, words.lengths)
        exported = package.write(
            program, Path(scratch) / "package", engine="vllm", version="0.1.0", knobs=knobs, source=program.source,
            measurements={}, selftest={"cases": []}, gate=gate,
        )  # fmt: skip
        with Served(exported, Path(scratch) / "package", str(model), words.dtype, words.python) as served:
            timed: dict[str, Any] = served.speed(words.lengths, words.batches)
            found = conditions(
                evaluated_on=device_name("cpu"), vllm=served.version, dtype=words.dtype, layers=words.layers,
                geometry=f"{HEADS} / {KV_HEADS} x {CHANNEL}", tokens_read=TOKENS, page=PAGE, versions=versions(),
                threads=timed["threads"], seed=timed["seed"], generated=timed["generated"],
                gate=gate and gate.to_json(),
            )  # fmt: skip
    for row in timed["rows"]:
        row["ideal"] = ideal(program, words.layers, row["length"], row["batch"], words.dtype)
        times = [
            f"{side} {1e3 * row[side]['between_p50']:.1f} ms"
            for side in ("dense", "gate off", "gate on")
            if side in row
        ]
        print(f"{row['length']:>7} x {row['batch']}: {', '.join(times)}; {row['ratio']:.2f} of {row['ideal']:.2f}")
    words.json.write_text(json.dumps({"conditions": found, "rows": timed["rows"]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
