"""A model in transformers that answers prompts: ``python -m vortexlab.deploy.huggingface.run JOB`` prints its findings.

A job has the form that `vortexlab.deploy.vllm.run` describes; `engine` has `model`, `dtype` and `device`. Requests of a
group that are equally long go through the model as one batch, others one after the other. Dense attention is SDPA over
a static cache, since a cache that is copied at every step would be no opponent.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Dense:
    """transformers' own attention."""

    def __init__(self, engine: dict[str, Any]):
        self.model = load(engine, "sdpa")

    def cache(self, tokens: int) -> Any:
        from transformers import StaticCache

        return StaticCache(config=self.model.config, max_cache_len=tokens)

    def stats(self) -> None:
        return None


class Sparse:
    """An installed package; counts what its decode steps are."""

    def __init__(self, engine: dict[str, Any], pattern: dict[str, Any], selections: bool):
        self.package = importlib.import_module(pattern["program"])
        self.pattern = self.package.PATTERN
        if not pattern["gate"]:
            self.pattern.gate = None
        self.model = load(engine, self.package.NAME)
        self.sparse = self.dense = 0
        self.read = 0.0
        self.kept: list[dict[str, Any]] | None = [] if selections else None

    def cache(self, tokens: int) -> Any:
        return self.pattern.cache(self.model.config)

    def count(self, cache: Any, batch: int, lengths: range) -> None:
        """After a batch: `lengths` are those of its contexts at the decode steps."""
        for length in lengths:
            is_sparse = self.pattern.gate is None or self.pattern.gate.is_sparse(batch, length)
            self.sparse += batch * is_sparse
            self.dense += batch * (not is_sparse)
            self.read -= 0.0 if is_sparse else batch * len(cache.layers)  # read whole, and no part of the density
        share = self.pattern.density(cache)
        self.read += 0.0 if share is None else share * batch * len(lengths) * len(cache.layers)

    def stats(self) -> dict[str, Any]:
        return {
            "sparse_steps": self.sparse, "dense_steps": self.dense, "read": self.read,
            "layers": self.model.config.get_text_config(decoder=True).num_hidden_layers,
        }  # fmt: skip

    def watch(self, cache: Any) -> None:
        """Has the first sparse step of every layer of a cache kept."""
        for layer in cache.layers:
            layer.executor = None
            seen: list[Any] = []
            layer._sparse = self._watched(layer, layer._sparse, seen)

    def _watched(self, layer: Any, sparse: Any, seen: list[Any]) -> Any:
        def step(query: Tensor, columns: int) -> tuple[Tensor, Tensor]:
            if seen:
                return sparse(query, columns)
            decode = layer.executor.decode

            def kept(*words: Any) -> Any:
                out, lists = decode(*words)
                seen.append(lists)
                return out, lists

            layer.executor.decode = kept
            out, share = sparse(query, columns)
            del layer.executor.decode
            k, v = layer.paged.dense(0)
            assert self.kept is not None
            self.kept.append({
                "layer": layer.layer, "q": query[0].clone(), "k": k, "v": v, "out": out[0].clone(),
                "pages": seen[0].to_list()[0], "static": vars(layer.executor.static),
            })  # fmt: skip
            return out, share

        return step


def load(engine: dict[str, Any], attention: str) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        engine["model"], dtype=getattr(torch, engine["dtype"]), attn_implementation=attention, local_files_only=True
    )
    return model.to(engine["device"]).eval()


@torch.inference_mode()
def answer(side: Dense | Sparse, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Equally long requests together, greedily: as `vortexlab.deploy.vllm.run.answer`."""
    count, length = max(item["count"] for item in batch), len(batch[0]["prompt"])
    device = side.model.device
    cache = side.cache(length + count)
    if isinstance(side, Sparse) and side.kept is not None:
        side.watch(cache)
    step = torch.tensor([item["prompt"] for item in batch], device=device)
    tokens: list[list[int]] = [[] for _ in batch]
    steps: list[list[dict[str, Any]]] = [[] for _ in batch]
    times = [time.perf_counter()]
    for _ in range(count):
        logits = side.model(input_ids=step, past_key_values=cache, logits_to_keep=1).logits[:, -1]
        step = logits.argmax(-1, keepdim=True)
        for row, token in enumerate(step[:, 0].tolist()):
            tokens[row].append(token)
        times.append(time.perf_counter())
        if most := batch[0]["logprobs"]:
            values, ids = logits.float().log_softmax(-1).topk(min(most, logits.shape[-1]))
            for row in range(len(batch)):
                steps[row].append({"ids": ids[row].tolist(), "values": values[row].tolist()})
    if isinstance(side, Sparse):
        side.count(cache, len(batch), range(length + 1, length + count))
    gaps = [b - a for a, b in pairwise(times)]
    return [
        {"tokens": row[: item["count"]], "logprobs": found[: item["count"]], "first": gaps[0], "between": gaps[1:]}
        for item, row, found in zip(batch, tokens, steps, strict=True)
    ]


def main() -> None:
    import transformers

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    pattern = job["pattern"]
    side = Dense(job["engine"]) if pattern is None else Sparse(job["engine"], pattern, bool(job["selections"]))
    groups = []
    for group in job["groups"]:
        together = len({len(item["prompt"]) for item in group}) == 1
        batches = [group] if together else [[item] for item in group]
        groups.append({"rows": [row for batch in batches for row in answer(side, batch)], "stats": side.stats()})
    if job["selections"]:
        assert isinstance(side, Sparse)
        torch.save(side.kept, job["selections"])
    ran = {"device": side.model.device.type, "threads": torch.get_num_threads()}
    print(json.dumps({"version": transformers.__version__, **ran, "groups": groups}), flush=True)


if __name__ == "__main__":
    main()
