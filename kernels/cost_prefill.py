"""What reading whole prompts will cost: the stages of `vortexlab.kernels.cost`, added up over the blocks of queries."""

from __future__ import annotations

import math
from dataclasses import replace

from vortexlab.dsl.bounds import page_bound
from vortexlab.dsl.ir import Program, Static
from vortexlab.kernels.cost import Model, Prediction, Stage, merged, model, times
from vortexlab.kernels.devices import Device

#: Queries that one reading of keys and values serves, and blocks that are looked at.
_TILE, _SAMPLES = 128, 16


def predict_prefill(
    program: Program, static: Static, context: int, batch: int, device: str | Device, *, dtype: str = "bf16"
) -> Prediction:
    """The cost of reading `batch` prompts of `context` tokens in one layer of a bound program.

    The stages of some blocks stand for those between, which run beside them. `pages` is what a block reads on average,
    bounded from the program; `density` the share of the causal pairs of query and token. Raises `VortexError` as
    `cost.predict` does.
    """
    whole = model(program, replace(static, prefill=True), context, batch, device, dtype)
    causal = context * (context + 1) / 2
    dense = _attention(whole.dense(), context, context / 2)
    if program.pooled is None:
        return _prediction(whole, whole.candidates + 1.0, 1.0, (dense,), dense)
    block = int(program.block or program.page_size)  # type: ignore[arg-type]
    starts = range(0, context, block)
    each = max(1, len(starts) // _SAMPLES)
    taken = starts[each // 2 :: each]
    count = len(starts) / len(taken)
    rows = max(1, round(batch * count))
    share = batch * count / rows
    stages: list[Stage] = []
    pairs = pages = 0.0
    for start in taken:
        at = model(program, whole.static, start + 1, rows, device, dtype)
        bound = float(page_bound(program, at.static, start + 1))
        if at.lowered.nodes[at.lowered.output].type.axes:
            bound *= static.group
        chosen = min(max(bound, 1.0), at.candidates + 1.0) - 1
        stop = min(start + block, context)
        page = program.page_size
        attended = _attention(at, stop - start, chosen * page + stop - start // page * page)
        stages += [times(stage, share) for stage in (at.score(), at.select(chosen + 1), attended)]
        pairs += count * (chosen * page + start % page + (stop - start + 1) / 2) * (stop - start)
        pages += (chosen + 1) / len(taken)
    # A step's share of a summary, for every token of the complete pages; their launches are few.
    summary = times(whole.summary(launched=False), float(context // program.page_size * program.page_size))
    names = ("score", "select", "attend")
    parts = (merged(name, [stage for stage in stages if stage.name == name]) for name in names)
    return _prediction(whole, pages, min(1.0, pairs / causal), (summary, *parts), dense)


def _prediction(
    whole: Model, pages: float, density: float, stages: tuple[Stage, ...], dense: Stage
) -> Prediction:
    return Prediction(
        whole.program.name, whole.device, whole.static, whole.context, whole.batch, whole.dtype, whole.dense_dtype,
        pages, False, density, stages, merged("dense", [dense]), "prefill",
    )  # fmt: skip


def _attention(at: Model, queries: int, tokens: float) -> Stage:
    """`queries` of every query head over `tokens` tokens each; a reading of these serves a tile of queries."""
    static = at.static
    read = at.rows * tokens * at.token_bytes() * math.ceil(queries / _TILE)
    flops = 2.0 * at.rows * static.group * queries * tokens * (static.head_dim + static.value_dim)
    return at.stage("attend", read=read, flops=flops, kernels=1.0, rate=at.device.gather)
