"""Memory, reuse and the attention output on the torch executor, over steps, layers and ragged rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.step_cases import check_steps, close, model, with_parameters
from vortexlab.dsl import reference
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.dsl.parser import parse
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import PrefillExecutor
from vortexlab.kernels.memory import Carry
from vortexlab.kernels.torch_executor import TorchExecutor

STATIC = Static(kv_heads=2, group=2, head_dim=8, scale=0.25, layers=3)
HEAD = '''
    def summarize(k, v):
        return dict(c=k.sum(token), v=v.mean(token), pk=k.split(token, part=2).max(token),
            pv=v.split(token, part=2).min(token))

    def score(q, s):
        return dot(q, s.c, channel).max(head)

    def select(score):
        return topk(score, 2)
'''
MEMORIES = {
    "a sum over steps": (
        "mass = memory.step(page, init=0.5)",
        "return dot(q, s.c, channel).max(head) + m.mass", "return topk(score, 2)", "return dict(mass=m.mass + score)",
    ),
    "a value per head, rewritten every third step": (
        "mass = memory.step(page, head, every=3)",
        "return dot(q, s.c, channel) + m.mass", "return topk(score, 1) | last(2)",
        "return dict(mass=dot(q, s.c, channel) - m.mass)",
    ),
    "a beginning that is summed": (
        "below = memory.layer(page, head, init=1.0)\n    mine = memory.step(page, channel, init=2.0)",
        "return dot(q, s.c, channel).max(head) * m.below.sum(head) + dot(q, m.mine, channel).max(head)",
        "return topk(score, 2)", "return dict(below=dot(q, s.c, channel), mine=s.c)",
    ),
    "a wide value": (
        "seen = memory.step(page, channel, init=1.0)",
        "return dot(q, s.c + m.seen, channel).max(head)", "return topk(score, 2)",
        "return dict(seen=m.seen + s.c)",
    ),
    "sets": (
        "before = memory.step(pages)\n    two = memory.step(pages, every=2)",
        "return dot(q, s.c, channel).max(head)", "return topk(score, 1) | m.before - first(1) | m.two & stride(2)",
        "return dict(before=topk(score, 2), two=pages)",
    ),
    "sets of query heads": (
        "before = memory.step(pages, head)",
        "return dot(q, s.c, channel)", "return topk(score, 1) | m.before", "return dict(before=topk(score, 2))",
    ),
    "from the layer below": (
        "below = memory.layer(page, init=2.0)\n    chosen = memory.layer(pages)",
        "return dot(q, s.c, channel).max(head) + m.below",
        "return topk(score, 2, among=~m.chosen) | m.chosen & first(2)",
        "return dict(below=score, chosen=pages)",
    ),
    "from layer and step": (
        "below = memory.layer(page)\n    mine = memory.step(page)",
        "return dot(q, s.c, channel).max(head) + m.below", "return topk(score, 2)",
        "return dict(below=score + m.mine, mine=score)",
    ),
    "a set kept over steps": (
        "", "return dot(q, s.c, channel).max(head)", "return reuse(topk(score, 2) | last(2), every=3) | last(1)", "",
    ),
    "a kept set within a kept set": (
        "", "return dot(q, s.c, channel)",
        "return reuse(topk(score, 2, among=reuse(first(3) | last(3), every=4)), every=3) | last(2)", "",
    ),
    "a set of some layers": (
        "", "return dot(q, s.c, channel).max(head)",
        "return reuse(topk(score, 2), layers=ctx.layer % 2 == 0) | last(1)", "",
    ),
}  # fmt: skip


def memory_program(name: str) -> Program:
    declared, score, select, remember = MEMORIES[name]
    more = f"\n    def remember(q, s, score, m, pages):\n        {remember}\n" if remember else ""
    return parse(f"""from vortexlab.dsl import *


@program(page=4)
class P:
    {declared}

    def summarize(k):
        return dict(c=k.sum(token))

    def score(q, s{", m" if declared else ""}):
        {score}

    def select(score{", m" if declared else ""}, ctx):
        {select}
{more}""").bind()


@pytest.mark.parametrize("name", MEMORIES)
def test_memory(name: str) -> None:
    case = model(memory_program(name), STATIC, [1, 30, 14], 9, seed=3)
    assert check_steps(case, ends={6: 2}) == []


OUTPUTS = {
    "a log-weight": "return attention(pages, log_weight=score)",
    "a log-weight by head": "return attention(pages, log_weight=dot(q, s.c, channel) / 8)",
    "other pages than those selected": "return attention(pages | first(1), log_weight=where(score > 0, -1.0, 1.0))",
    "pages of each head": "return attention(topk(dot(q, s.c, channel), 1))",
    "entries": "return attention(keys=s.c, values=s.v)",
    "entries of parts": "return attention(keys=s.pk, values=s.pv, log_weight=dot(q, s.pk, channel) / 16)",
    "entries of some pages": "return attention(keys=s.pk, values=s.pv, among=~pages)",
    "tokens and entries": "return attention(pages, keys=s.c, values=s.v, among=~pages)",
    "tokens and entries, weighted": (
        "return attention(pages, keys=s.pk, values=s.pv, among=~first(1), log_weight=score / 4, "
        "entry_log_weight=log(2.0))"
    ),
    "tokens and entries of each head": (
        "own = topk(dot(q, s.c, channel), 1)\n"
        "        return attention(own, keys=s.c, values=s.v, among=~own, entry_log_weight=dot(q, s.c, channel) / 8)"
    ),
    "entries of a page's neighbours": "return attention(keys=s.c.shift(page, 1, fill=0.0), values=s.v.cumsum(page))",
    "no entry at all": "return attention(keys=s.c, values=s.v, among=first(0)) + 0.5 * attention(pages)",
    "pages hidden": "return attention(pages, log_weight=where(score > 0, 0.0, -1e30))",
    "gates": (
        "near = attention(last(2))\n        far = attention(pages, log_weight=score / 4)\n"
        "        g = sigmoid(dot(q, gate, channel))\n        return g * near + (1 - g) * far"
    ),
    "plain": "return attention(pages)",
}


def output_program(name: str, options: str = "", head: str = HEAD) -> Program:
    text = f"""from vortexlab.dsl import *


@program(page=4{options})
class P:
    gate = param(head, channel)
{head}
    def attend(q, s, score, pages):
        {OUTPUTS[name]}
"""
    return parse(text).bind()


@pytest.mark.parametrize("name", OUTPUTS)
def test_attention_output(name: str, tmp_path: Path) -> None:
    bound = with_parameters(output_program(name), replace(STATIC, layers=1), tmp_path)
    for real in (False, True):
        case = model(bound, replace(STATIC, layers=1), [1, 30, 13], 4, seed=5, real=real)
        assert check_steps(case) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_attention_output_over_lower_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    bound = with_parameters(output_program("tokens and entries, weighted"), replace(STATIC, layers=1), tmp_path)
    assert check_steps(model(bound, replace(STATIC, layers=1), [1, 30, 13], 4, real=True, dtype=dtype)) == []


def test_plain_output_is_the_plain_step() -> None:
    executor = TorchExecutor(output_program("plain"), STATIC)
    assert executor.compiled(torch.float32).is_plain
    assert not TorchExecutor(output_program("pages of each head"), STATIC).compiled(torch.float32).is_plain


def one_layer(program: Program, lengths: list[int], seed: int = 0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randint(-3, 4, shape, generator=generator).float()

    keys = [draw(2, n, 8) for n in lengths]
    values = [draw(2, n, 8) for n in lengths]
    cache = PagedKV.from_dense([k[:, :-6] for k in keys], [v[:, :-6] for v in values], 4, spare=6)
    executor = TorchExecutor(program, replace(STATIC, layers=1))
    state = executor.new_state(cache)
    executor.summarize(state, cache)
    return executor, state, cache, keys, values, draw(6, len(lengths), 4, 8)


def test_rows_change_places_and_begin_again() -> None:
    program = memory_program("a sum over steps")
    lengths = [20, 31, 26]
    executor, state, cache, keys, values, q = one_layer(program, lengths)
    memory = executor.new_memory(cache)
    requests = [reference.Request(program, executor.static) for _ in lengths]
    orders = [[0, 1, 2], [2, 0, 1], [1, 2], [0, 2, 1], [1, 0, 2], [2, 1, 0]]
    done = [0, 0, 0]
    for step, order in enumerate(orders):
        if step == 3:  # request 2 is preempted and computed anew
            memory.reset([2])
            requests[2] = reference.Request(program, executor.static)
        rows = PagedKV(cache.k, cache.v, cache.table[order], cache.lengths[order], 4)
        at = [lengths[i] - 6 + done[i] for i in order]
        rows.append(*(torch.stack([x[i][:, n] for i, n in zip(order, at, strict=True)]) for x in (keys, values)))
        cache.lengths[order] = rows.lengths
        executor.update(state, rows)
        memory.slots = order
        out, lists = executor.decode(q[step][: len(order)], state, rows, memory)
        for row, i in enumerate(order):
            done[i] += 1
            seen = lengths[i] - 6 + done[i]
            context = [[x[i][:, :seen].double()] for x in (keys, values)]
            want = requests[i].step([q[step][row].double()], *context)
            assert lists.to_list()[row] == [[list(p) for p in per_kv] for per_kv in want[0].lists], (step, i)
            assert close(out[row], want[0].output)


def test_what_only_a_kept_set_needs_is_computed_when_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    executor, state, cache, keys, values, q = one_layer(memory_program("a set kept over steps"), [20, 20])
    memory = executor.new_memory(cache)
    form = executor.compiled(cache.k.dtype)
    dots = [i for i, node in form.program if node.op == "dot"]
    count = 0
    kernel = form.kernels[dots[0]]

    def counted(inputs: object) -> torch.Tensor:
        nonlocal count
        count += 1
        return kernel(inputs)  # type: ignore[arg-type]

    monkeypatch.setitem(form.kernels, dots[0], counted)
    seen = []
    for step in range(6):
        at = 14 + step
        cache.append(torch.stack([k[:, at] for k in keys]), torch.stack([v[:, at] for v in values]))
        executor.update(state, cache)
        before = count
        executor.decode(q[step], state, cache, memory)
        seen.append(count > before)
    assert seen == [True, True, False, False, True, False]  # the first step, then positions 15 and 18


def test_selection_alone_moves_nothing_on() -> None:
    executor: PrefillExecutor
    executor, state, cache, _, _, q = one_layer(memory_program("a sum over steps"), [20, 33])
    memory = executor.new_memory(cache)
    first = executor.select(q[0], state, cache, memory).to_list()
    executor.select(q[1], state, cache, memory)
    assert executor.select(q[0], state, cache, memory).to_list() == first
    assert executor.decode(q[0], state, cache, memory)[1].to_list() == first


def test_bad_use_is_said_in_one_line() -> None:
    executor, state, cache, _, _, q = one_layer(memory_program("a sum over steps"), [20, 33])
    with pytest.raises(VortexError, match="new_memory"):
        executor.decode(q[0], state, cache)
    with pytest.raises(VortexError, match="a slot for every request"):
        executor.decode(q[0], state, cache, executor.new_memory(cache, rows=1))
    upper = TorchExecutor(memory_program("a set of some layers"), replace(STATIC, layer=1))
    with pytest.raises(VortexError, match="share one Carry"):
        upper.decode(q[0], upper.new_state(cache), cache, upper.new_memory(cache, carry=Carry()))
    weighted = TorchExecutor(output_program("a log-weight"), STATIC)
    with pytest.raises(VortexError, match="attends by itself"):
        weighted.attend(q[0], cache, weighted.select(q[0], state=_summarised(weighted, cache), cache=cache))
    with pytest.raises(VortexError, match="--parameters"):
        TorchExecutor(output_program("gates"), STATIC)


def _summarised(executor: TorchExecutor, cache: PagedKV):
    state = executor.new_state(cache)
    executor.summarize(state, cache)
    return state


@pytest.mark.parametrize("name", MEMORIES)
def test_idle_rows_touch_no_memory(name: str) -> None:
    """A request remembers the same with rows of length 0 around it, and begins anew after its own row was idle."""
    program = memory_program(name)
    generator = torch.Generator().manual_seed(5)
    contexts = [torch.randn(2, 2, 40, 8, generator=generator) for _ in range(2)]
    cache = PagedKV.from_dense([c[0] for c in contexts], [c[1] for c in contexts], 4)
    q = torch.randn(7, 2, 4, 8, generator=generator)
    # The second request pauses at step 3, which restarts nothing, and the third row never holds one.
    lengths = torch.tensor([[20 + s, 31 + s - (s > 3) if s != 3 else 0] for s in range(7)], dtype=torch.int32)

    def outputs(rows: list[int], idle: bool) -> list[list[torch.Tensor]]:
        executors = [TorchExecutor(program, replace(STATIC, layer=layer)) for layer in range(3)]
        shared, table = Carry(), cache.table[rows]
        if idle:
            table = torch.cat([table, torch.full_like(table[:1], -1)])
        whole = PagedKV(cache.k, cache.v, table, torch.zeros(len(table), dtype=torch.int32), 4)
        memories = [executor.new_memory(whole, carry=shared) for executor in executors]
        found: list[list[torch.Tensor]] = [[] for _ in rows]
        for step in range(7):
            now = lengths[step, rows]
            if not idle and not bool(now.all()):
                continue
            whole.lengths = torch.cat([now, now.new_zeros(len(table) - len(rows))])
            given = torch.cat([q[step, rows], q.new_full((len(table) - len(rows), 4, 8), torch.nan)])
            for executor, memory in zip(executors, memories, strict=True):
                state = executor.new_state(whole)
                executor.summarize(state, whole)
                out, lists = executor.decode(given, state, whole, memory)
                assert not bool(out[whole.lengths == 0].any()) and not bool(lists.counts[whole.lengths == 0].any())
                for place in range(len(rows)):
                    if now[place]:
                        found[place].append(out[place])
        return found

    together = outputs([0, 1], idle=True)
    for row in (0, 1):
        for mine, alone in zip(together[row], outputs([row], idle=False)[0], strict=True):
            assert close(mine, alone)
