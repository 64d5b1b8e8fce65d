"""The fidelity gate: what a program's selection does to attention on queries, keys and values of the model itself.

The recorded steps are those that read the last token of a question, the moment at which what was asked must be found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vortexlab.evaluator.contexts import Fork
from vortexlab.evaluator.executors import ReversedTies, everything_of
from vortexlab.evaluator.replay import Session, Watcher
from vortexlab.evaluator.traits import forced_part
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import PageLists
from vortexlab.kernels.precision import cast

#: Every page read, the output must be that of dense attention; more is a fault of the executor.
_DENSE_ERROR = {"float32": 1e-3, "bfloat16": 3e-2, "float16": 1e-2}


@dataclass(frozen=True)
class Recording:
    """Queries [rows, query_heads, channel] and dense outputs of every layer, and the tokens since the context:
    `tail_k`, `tail_v`: per layer and row [kv_heads, tokens, channel], the step's own included."""

    forks: tuple[Fork, ...]
    q: list[Tensor]
    out: list[Tensor]
    tail_k: list[list[Tensor]]
    tail_v: list[list[Tensor]]

    @staticmethod
    def from_watcher(forks: Sequence[Fork], watcher: Watcher) -> Recording:
        """What `watcher` saw of the replay of `forks`."""
        rows = sorted(watcher.steps)
        return Recording(
            tuple(forks[row] for row in rows),
            [torch.stack([layer[row] for row in rows]) for layer in watcher.q],
            [torch.stack([layer[row] for row in rows]) for layer in watcher.out],
            [[layer[row][0] for row in rows] for layer in watcher.tail],
            [[layer[row][1] for row in rows] for layer in watcher.tail],
        )

    def save(self, path: Path) -> None:
        tensors = {"forks": torch.tensor([[fork.context, fork.turn] for fork in self.forks])}
        for layer in range(len(self.q)):
            tensors[f"q.{layer}"], tensors[f"out.{layer}"] = self.q[layer], self.out[layer]
            for row in range(len(self.forks)):
                tensors[f"k.{layer}.{row}"] = self.tail_k[layer][row].contiguous()
                tensors[f"v.{layer}.{row}"] = self.tail_v[layer][row].contiguous()
        save_file(tensors, str(path))

    @staticmethod
    def load(path: Path, device: torch.device) -> Recording:
        # Tensors lie in the file at any address; copies are aligned, so that sums come out as before to the last bit.
        tensors = {name: tensor.clone() for name, tensor in load_file(str(path), device=str(device)).items()}
        forks = tuple(Fork(*pair) for pair in tensors["forks"].tolist())
        layers = sum(name.startswith("q.") for name in tensors)
        return Recording(
            forks,
            [tensors[f"q.{layer}"] for layer in range(layers)],
            [tensors[f"out.{layer}"] for layer in range(layers)],
            [[tensors[f"k.{layer}.{row}"] for row in range(len(forks))] for layer in range(layers)],
            [[tensors[f"v.{layer}.{row}"] for row in range(len(forks))] for layer in range(layers)],
        )

    def caches(self, session: Session) -> list[PagedKV]:
        """The caches of all layers as they were at the recorded step, in the precision of the session's program."""
        caches = session.fork(self.forks)
        for layer, cache in enumerate(caches):
            for row, (k, v) in enumerate(zip(self.tail_k[layer], self.tail_v[layer], strict=True)):
                position = int(cache.lengths[row]) + torch.arange(k.shape[1], device=cache.k.device)
                blocks = cache.table[row].long()[position // cache.block]
                cache.k[blocks, :, position % cache.block] = cast(k, cache.k.dtype).transpose(0, 1)
                cache.v[blocks, :, position % cache.block] = cast(v, cache.v.dtype).transpose(0, 1)
            cache.lengths += torch.tensor(
                [k.shape[1] for k in self.tail_k[layer]], dtype=torch.int32, device=cache.lengths.device
            )
        return caches


def page_mass(q: Tensor, cache: PagedKV, row: int, page: int, scale: float) -> Tensor:
    """Dense attention mass of every page of one request: [kv_heads, group, pages], own page last. `q`: [Hq, D]."""
    k, _ = cache.dense(row)
    heads, length, _ = k.shape
    weights = torch.softmax(q.view(heads, -1, q.shape[-1]).float() @ k.float().transpose(1, 2) * scale, -1)
    pages = -(-length // page)
    return torch.nn.functional.pad(weights, (0, pages * page - length)).unflatten(2, (pages, page)).sum(-1)


def measure(session: Session, recording: Recording, reversed_session: Session | None) -> dict[str, Any]:
    """Output error per query head, mass kept on candidate pages, effective density, and what ties decided.

    Errors are ||dense - sparse|| / ||dense||, where dense attention reads the keys and values as the model made them.
    What a cache of another precision alone does to it is `cache_error`, and what the selection does beside that, the
    error to dense attention over the same cache, is `selection_error`. The mass is that on candidates which are not
    read regardless of scores, as a share of all such mass (`mass`) and of what the same number of pages could hold at
    best (`mass_of_best`). `layer_density` and `worst_heads`, the three that are off most, say where.
    `ties`: share of the chosen pages that change when of equal scores the later page comes first. `picked`: for every
    recorded step the share of (layer, KV head) that reads each page, [steps][pages].
    """
    session.prepare()
    if reversed_session is not None:
        reversed_session.prepare()
    model, page = session.model, session.page
    caches = recording.caches(session)
    rounds = session.cache_dtype != model.dtype
    memories = session.memories(caches)
    forced_type = type(session.executors[0])
    forced_program = forced_part(session.program)
    errors, rounding, selecting, kept, best, tokens, chosen, changed = [], [], [], [], [], [], 0, 0
    picks: list[Tensor | float] = [0.0] * len(recording.forks)
    for layer, cache in enumerate(caches):
        executor, state, q = session.executors[layer], session.states[layer], recording.q[layer]
        executor.summarize(state, cache)
        if reversed_session is not None:  # first, since a step moves on what is remembered
            first, second = _both_orders(reversed_session, layer, q, cache, memories[layer])
            chosen += int(first.sum())
            changed += int((first & ~second).sum())
        out, lists = session.decode(layer, q, cache, memories[layer])
        dense = recording.out[layer]
        errors.append(_off(out, dense))
        if rounds:
            whole = forced_type(everything_of(session.program), model.static(layer))
            stored = whole.decode(q, whole.new_state(cache), cache)[0]
            rounding.append(_off(stored, dense))
            selecting.append(_off(out, stored))
        tokens.append((lists.tokens(cache.lengths, page).double() / cache.lengths[:, None]).flatten())
        least = forced_type(forced_program, model.static(layer))
        forced = least.select(q, state, cache, *([least.new_memory(cache)] if forced_program.has_memory else []))
        for row in range(len(recording.forks)):
            mass = page_mass(q[row], cache, row, page, model.scale)
            pages = mass.shape[-1]
            picked = _mask(lists, row, pages)
            picks[row] += picked.any(1).double().mean(0) / len(caches)
            free = ~_mask(forced, row, pages)
            free[..., pages - 1] = False
            on_free = (mass * free).sum(-1)
            have = on_free > 1e-9
            kept.append(((mass * (free & picked)).sum(-1) / on_free)[have])
            best.append(((mass * (free & picked)).sum(-1) / _best(mass, free, picked))[have])
    error = torch.cat([e.flatten() for e in errors]).double()
    heads = torch.stack(errors).mean(1)  # [layers, query heads]
    share, of_best = torch.cat(kept).double(), torch.cat(best).double()
    return {
        "finite": bool(error.isfinite().all()),
        "error_mean": _number(error.mean()),
        "error_p95": _number(error.quantile(0.95)),
        "error_worst_head": _number(heads.max()),
        "worst_heads": _worst(heads),
        "layer_density": [_number(layer.mean()) for layer in tokens],
        "cache_error": _number(torch.cat(rounding).double().mean()) if rounds else 0.0,
        "selection_error": _number((torch.cat(selecting).double() if rounds else error).mean()),
        "mass": _number(share.mean()) if share.numel() else 1.0,
        "mass_of_best": _number(of_best.mean()) if of_best.numel() else 1.0,
        "density": _number(torch.cat(tokens).mean()),
        "ties": changed / max(1, chosen),
        "picked": [[round(share, 4) for share in torch.as_tensor(row).tolist()] for row in picks],
        "steps": len(recording.forks),
        "dense_limit": _DENSE_ERROR[str(model.dtype).removeprefix("torch.")],
    }


def _worst(heads: Tensor) -> list[dict[str, Any]]:
    """Layer, query head and error of the three heads that are off most. `heads`: [layers, query heads]."""
    errors, places = heads.flatten().topk(min(3, heads.numel()))
    width = heads.shape[1]
    return [
        {"layer": at // width, "head": at % width, "error": _number(error)}
        for at, error in zip(places.tolist(), errors, strict=True)
    ]


def _off(out: Tensor, dense: Tensor) -> Tensor:
    """Relative error per row and query head."""
    return (out.float() - dense.float()).norm(dim=-1) / dense.float().norm(dim=-1).clamp(min=1e-20)


def _both_orders(session: Session, layer: int, q: Tensor, cache: PagedKV, memory: Any) -> tuple[Tensor, Tensor]:
    """What one executor selects with the earlier and with the later of equal pages first, as masks.

    Both from the same executor: another one may differ from it by rounding, which is no tie.
    """
    executor, state = session.executors[layer], session.states[layer]
    assert isinstance(executor, ReversedTies)
    executor.summarize(state, cache)
    most = int(cache.lengths.max() - 1) // session.page + 1
    forward, backward = (choose(q, state, cache, memory) for choose in (executor.select_forward, executor.select))
    return forward.to_mask(most), backward.to_mask(most)


def _mask(lists: PageLists, row: int, pages: int) -> Tensor:
    """bool [kv_heads, lists, pages] of one request."""
    return PageLists(lists.pages[row : row + 1], lists.counts[row : row + 1]).to_mask(pages)[0]


def _best(mass: Tensor, free: Tensor, picked: Tensor) -> Tensor:
    """The mass that as many free pages as were picked hold at best, per query head: [kv_heads, group]."""
    count = (free & picked).sum(-1).expand(mass.shape[:2])
    ranked = (mass * free).sort(-1, descending=True).values.cumsum(-1)
    total = ranked.gather(-1, (count - 1).clamp(min=0)[..., None])[..., 0]
    return torch.where(count > 0, total, torch.inf)


def _number(value: Tensor) -> float:
    """A finite float for the wire; what is not finite is told by ``finite``."""
    return float(value) if bool(value.isfinite()) else -1.0
