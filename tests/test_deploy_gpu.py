"""What serves a program, on a GPU: the transformers engine's padded batches, and a pool of blocks as vLLM keeps it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vortexlab.deploy.huggingface.pattern import Pattern
from vortexlab.deploy.vllm.pages import LayerPages, Rows
from vortexlab.dsl.ir import Static
from vortexlab.evaluator.config import REFERENCE_MODEL
from vortexlab.evaluator.tasks import make_samples
from vortexlab.kernels.gpu.executor import TritonExecutor
from vortexlab.kernels.torch_executor import TorchExecutor
from vortexlab.search_spaces.library import load

pytestmark = pytest.mark.gpu
QUEST = load("quest").bind({"page": 16, "budget": 6})
HEADS, GROUP, CHANNEL, BLOCK = 2, 4, 64, 32


@pytest.fixture(autouse=True)
def gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def generated(model: Any, rows: list[list[int]], count: int) -> list[list[int]]:
    """Greedy tokens of rows that are padded on the left to one length."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    found = model.generate(ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False)
    return found[:, width:].tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_padded_rows_get_what_they_get_alone(dtype: str) -> None:
    """In float32 token for token, and as on the CPU; in bfloat16 most rows, since batches round otherwise."""
    prompts = [
        [*sample.context, *sample.turns[0].question]
        for task, length in (("keys", 450), ("needles", 336), ("needle", 128))
        for sample in make_samples(task, length, 1)
    ]
    pattern = Pattern(QUEST, f"gpu_{dtype}")
    model = pattern.load(REFERENCE_MODEL, dtype=getattr(torch, dtype)).cuda().eval()
    together, alone = generated(model, prompts, 24), [generated(model, [row], 24)[0] for row in prompts]
    same = sum(a == b for a, b in zip(together, alone, strict=True))
    density = pattern.density(model)
    assert density is not None and density < 0.8
    if dtype == "float32":
        assert same == len(prompts) and alone[0] == generated(model.cpu(), prompts[:1], 24)[0]
    else:
        assert same >= len(prompts) - 1


def test_a_pool_of_blocks_is_read_in_place() -> None:
    """Values behind keys, as vLLM lays a GPU's pool out: steps of both executors, after prompts and shared blocks."""
    static = Static(HEADS, GROUP, CHANNEL, CHANNEL**-0.5, 0, 1)
    draw = torch.Generator().manual_seed(3)
    pool = torch.randn(40, HEADS, BLOCK, 2 * CHANNEL, generator=draw)
    table = torch.tensor([[7, 3, 9, 12, 30], [7, 3, 5, -1, -1], [1, 2, 4, 6, 8]], dtype=torch.int32)
    first = torch.tensor([140, 70, 129], dtype=torch.int32)
    found = {}
    for device in ("cpu", "cuda"):
        pages = LayerPages(QUEST, static, torch.device(device))
        assert isinstance(pages.executor, TritonExecutor if device == "cuda" else TorchExecutor)
        k, v = pool.to(device).split(CHANNEL, -1)
        rows = [Rows(table, first, first.long(), torch.arange(3))]
        rows += [Rows(table, first + step, torch.ones(3, dtype=torch.int64), torch.arange(3)) for step in range(1, 8)]
        outs = []
        random = torch.Generator().manual_seed(4)
        for number, row in enumerate(rows):
            cache = Rows(*(x.to(device) for x in (row.table, row.lengths, row.fresh, row.tokens))).cache(k, v)
            pages.refresh(cache, row.fresh.to(device), number > 0)
            q = torch.randn(3, HEADS * GROUP, CHANNEL, generator=random).to(device)
            outs += [pages.decode(q, cache).cpu(), pages.decode_densely(q, cache).cpu()]
        found[device] = torch.stack(outs)
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=5e-3, atol=5e-3)
