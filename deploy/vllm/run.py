"""One engine of vLLM that answers prompts: ``python -m vortexlab.deploy.vllm.run JOB`` prints its findings as JSON.

A job is a JSON file:

* `engine`: arguments of vLLM's `LLM`. `pattern`: what stands in `additional_config`; null for vLLM's own attention.
* `groups`: lists of requests that are handed over together, one list after the other has ended; a request has
  `prompt` (token ids), `count` (tokens to generate greedily) and `logprobs` (how many of each step to keep).
* `selections`: a file for queries, keys, values and page lists of one decode step of every group; null for none.

It runs in the Python that vLLM is installed in, and imports of vortexlab what a package does. The engine shares the
process, so that every step can be timed. `vortex verify` is what writes jobs.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from vortexlab.kernels.cache import PagedKV

#: The sparse step of a group that is kept.
_WAIT = 1


def answer(llm: Any, group: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every request's `tokens`, `logprobs` ([{ids, values}]), seconds to the first token and between later ones."""
    from vllm import SamplingParams

    engine = llm.llm_engine
    found: dict[str, dict[str, Any]] = {}
    began = time.perf_counter()
    for number, item in enumerate(group):
        engine.add_request(
            str(number),
            {"prompt_token_ids": item["prompt"]},
            SamplingParams(
                temperature=0.0, max_tokens=item["count"], ignore_eos=True, logprobs=item["logprobs"] or None
            ),
        )
        found[str(number)] = {"times": []}
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            row, held = found[output.request_id], output.outputs[0]
            row["times"] += [now] * (len(held.token_ids) - len(row["times"]))
            row["tokens"], row["logprobs"] = list(held.token_ids), held.logprobs
    return [_plain(found[str(number)], began) for number in range(len(group))]


def _plain(row: dict[str, Any], began: float) -> dict[str, Any]:
    steps = [{"ids": list(step), "values": [item.logprob for item in step.values()]} for step in row["logprobs"] or []]
    times = row["times"]
    return {
        "tokens": row["tokens"],
        "logprobs": steps,
        "first": times[0] - began,
        "between": [b - a for a, b in itertools.pairwise(times)],
    }


class Selections:
    """Keeps what one decode step of every group read, at every layer."""

    def __init__(self) -> None:
        from vortexlab.deploy.vllm.pages import LayerPages

        self.kept: list[dict[str, Any]] = []
        self._steps: dict[int, int] = {}
        decode = LayerPages.decode

        def watched(pages: LayerPages, q: Tensor, cache: PagedKV, *, count: bool = False) -> Tensor:
            out = decode(pages, q, cache, count=count)
            layer = pages.static.layer
            self._steps[layer] = self._steps.get(layer, 0) + 1
            if self._steps[layer] == _WAIT and pages.lists is not None:
                k, v = cache.dense(0)
                self.kept.append({
                    "layer": layer, "q": q[0].clone(), "k": k, "v": v, "out": out[0].clone(),
                    "pages": pages.lists.to_list()[0], "static": vars(pages.static),
                })  # fmt: skip
            return out

        LayerPages.decode = watched  # type: ignore[method-assign, assignment]

    def next_group(self) -> None:
        self._steps.clear()


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    pattern = job["pattern"]
    if pattern is None:
        os.environ["VLLM_PLUGINS"] = ""
    from vllm import LLM, __version__

    config = {} if pattern is None else {"additional_config": {"vortex": pattern}}
    llm = LLM(**job["engine"], **config)
    selections = Selections() if job["selections"] else None
    stats = Path(pattern["stats"]) if isinstance(pattern, dict) and pattern.get("stats") else None
    groups = []
    for group in job["groups"]:
        rows = answer(llm, group)
        read = json.loads(stats.read_text(encoding="utf-8")) if stats and stats.exists() else None
        groups.append({"rows": rows, "stats": read})
        if selections is not None:
            selections.next_group()
    import torch

    if selections is not None:
        torch.save(selections.kept, job["selections"])
    ran = {"device": llm.llm_engine.vllm_config.device_config.device_type, "threads": torch.get_num_threads()}
    print(json.dumps({"version": __version__, **ran, "groups": groups}), flush=True)


if __name__ == "__main__":
    main()
