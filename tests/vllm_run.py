"""One engine of vLLM in a process of its own: ``python vllm_run.py JOB`` reads a job, generates, prints one JSON line.

A job has `engine` (arguments of `LLM`), `rounds` (lists of prompts as token ids; a round begins when the one before it
has ended), `count` (tokens to generate greedily), `stock` (whether all plugins stay out) and `inside` (whether the
engine shares this process, where every step is watched, instead of having processes of its own as it does for users).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

MARK = "RESULT "


def watch() -> dict[str, Any]:
    """Counts, over all steps: kinds of steps, summaries that differ from ones made anew from the pool, and tokens that
    lie elsewhere in it than the block table says. `pool` and `strides` are of a layer's pool as vLLM hands it over."""
    import torch

    from vortexlab.deploy.vllm import cpu
    from vortexlab.deploy.vllm.pages import LayerPages

    seen: dict[str, Any] = dict.fromkeys(
        ("summaries", "wrong_summaries", "slots", "wrong_slots", "null_blocks", "mixed", "pure", "one_token_prompts"), 0
    )
    refresh, build, forward = LayerPages.refresh, cpu.SparseBuilder.build, cpu.SparseImpl.forward

    def checked(self: LayerPages, cache: Any, fresh: torch.Tensor, one_each: bool) -> None:
        refresh(self, cache, fresh, one_each)
        page = self.executor.program.page_size
        anew = self.executor.new_state(cache)
        self.executor.summarize(anew, cache)
        table = cache.page_table(page)
        live = table[torch.arange(table.shape[1]) < (cache.lengths // page)[:, None]].unique()
        for name, held in self.state.fields.items():
            differs = (held[:, live] != anew.fields[name][:, live]).flatten(2).any(2)
            seen["summaries"] += differs.numel()
            seen["wrong_summaries"] += int(differs.sum())

    def counted(self: Any, common_prefix_len: int, common: Any, fast_build: bool = False) -> Any:
        found = build(self, common_prefix_len, common, fast_build)
        split = getattr(found, "split", None)
        if not isinstance(found, cpu.SparseMetadata) or split is None or common.num_reqs > split.all.fresh.numel():
            return found  # a part of a step, or one with padding
        if split.decoding.tokens.numel():
            seen["pure" if split.stock is None else "mixed"] += 1
        if split.stock is not None:
            seen["one_token_prompts"] += int((split.stock.query_start_loc.diff() == 1).sum())
        block = self.block_size
        at = 0
        for row, (length, fresh) in enumerate(zip(common.seq_lens.tolist(), split.all.fresh.tolist(), strict=True)):
            position = torch.arange(length - fresh, length)
            held = common.block_table_tensor[row].long()[position // block]
            slots = common.slot_mapping[at : at + fresh]
            seen["wrong_slots"] += int((slots != held * block + position % block).sum())
            seen["null_blocks"] += int((held == 0).sum())
            seen["slots"] += fresh
            at += fresh
        return found

    def looked(self: Any, layer: Any, q: Any, k: Any, v: Any, pool: torch.Tensor, *more: Any, **named: Any) -> Any:
        seen["pool"], seen["strides"], seen["layer"] = list(pool.shape), list(pool.stride()), layer.layer_name
        return forward(self, layer, q, k, v, pool, *more, **named)

    LayerPages.refresh = checked  # type: ignore[method-assign]
    cpu.SparseBuilder.build = counted  # type: ignore[method-assign]
    cpu.SparseImpl.forward = looked  # type: ignore[method-assign]
    return seen


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if job["inside"] else "1"
    if job["stock"]:
        os.environ["VLLM_PLUGINS"] = ""
    from vllm import LLM, SamplingParams

    llm = LLM(**job["engine"])
    seen = watch() if job["inside"] and not job["stock"] else {}
    greedy = SamplingParams(temperature=0.0, max_tokens=job["count"], ignore_eos=True)
    outputs = [
        llm.generate([{"prompt_token_ids": ids} for ids in prompts], greedy, use_tqdm=False)
        for prompts in job["rounds"]
    ]
    counters = {item.name: item.value for item in llm.get_metrics() if hasattr(item, "value")}
    print(
        MARK
        + json.dumps({
            "tokens": [[list(item.outputs[0].token_ids) for item in found] for found in outputs],
            "cached": [[item.num_cached_tokens for item in found] for found in outputs],
            "preemptions": counters["vllm:num_preemptions"],
            "seen": seen,
        }),
        flush=True,
    )


if __name__ == "__main__":
    main()
