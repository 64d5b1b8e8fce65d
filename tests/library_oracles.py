"""What every published program should select and give out, written from the papers' formulas in plain torch.

Nothing of the project is used here. An oracle sees one query of one KV head as a `Look` and returns an `Answer`: the
scores that a selector saw, the pages to read, and the attention output where it is not plain attention over them.
Every cut between chosen and left out is asserted to be wider than rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

#: Least distance between a chosen score and one left out.
MARGIN = 1e-9


@dataclass
class Look:
    """One query of one request and KV head: q [head, channel], k and v [token, channel] up to the query's own token.

    In prefill `block` holds the queries of the block [head, query, channel], `k` and `v` the tokens up to its first.
    `heads` are the looks of all KV heads at this step, `earlier` those of this layer and KV head at earlier steps,
    `below` those of the layers below; `tensors` the learned parameters, [layer, KV head, ...].
    """

    q: Tensor
    k: Tensor
    v: Tensor
    page: int
    kv: int
    layer: int
    layers: int
    scale: float
    latent: int
    knobs: Mapping[str, float]
    tensors: Mapping[str, Tensor]
    block: Tensor | None = None
    heads: list[Look] = field(default_factory=list)
    earlier: list[Look] = field(default_factory=list)
    below: list[Look] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.k.shape[0]

    @property
    def own(self) -> int:
        """The page of the query's token: the number of candidates."""
        return (self.length - 1) // self.page

    @property
    def keys(self) -> Tensor:
        """[page, token, channel] of the complete pages before the own one."""
        return self.k[: self.own * self.page].unflatten(0, (self.own, self.page))

    @property
    def values(self) -> Tensor:
        return self.v[: self.own * self.page].unflatten(0, (self.own, self.page))

    @property
    def centres(self) -> Tensor:
        return self.keys.mean(1)

    @property
    def pooled(self) -> Tensor:
        """The query that decides: the mean of a block of prefill."""
        return self.q if self.block is None else self.block.mean(1)

    def knob(self, name: str) -> int:
        return int(self.knobs[name])

    def learned(self, name: str, *, per_kv_head: bool = True) -> Tensor:
        return self.tensors[name][self.layer, self.kv] if per_kv_head else self.tensors[name][self.layer]


@dataclass
class Answer:
    """`pages`: bool [own + 1] or [head, own + 1]. `scores`: what some selector saw, [page] or [head, page], NaN where
    nothing is claimed. `attend` gives the output [head, channel] for q [head, channel] that sees `seen` tokens, where
    `touched` pages from the own one on are read by all."""

    pages: Tensor
    scores: list[Tensor] = field(default_factory=list)
    attend: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None


Oracle = Callable[[Look], Answer]


# Sets of pages


def ends(look: Look, sink: int | None = None, recent: int | None = None) -> Tensor:
    """The first and the last pages, bool [own + 1]."""
    page = torch.arange(look.own + 1)
    sink = look.knob("sink") if sink is None else sink
    return (page < sink) | (page > look.own - (look.knob("recent") if recent is None else recent))


def with_own(mask: Tensor) -> Tensor:
    mask = mask.clone()
    mask[..., -1] = True
    return mask


def rows_of(x: Tensor) -> list[Tensor]:
    """The rows of [page] or [head, page]; writing to them writes to it."""
    return list(x) if x.dim() == 2 else [x]


def best(score: Tensor, count: int, forced: Tensor, *, pooled: bool = False) -> Tensor:
    """The `count` best candidates outside `forced`, without `forced`: bool [..., own + 1]. Scores that are `pooled`
    from neighbours may be equal to the last bit, and the smaller page comes first."""
    free = ~forced[:-1]
    chosen = torch.zeros(*score.shape[:-1], len(forced), dtype=torch.bool)
    for row, mask in zip(rows_of(score), rows_of(chosen), strict=True):
        order = [i for i in row.argsort(descending=True, stable=True).tolist() if free[i]]
        if 0 < count < len(order):
            gap = row[order[count - 1]] - row[order[count]]
            assert gap > MARGIN * (1 + row.abs().max()) or (pooled and gap == 0), "a tie at the cut"
        mask[order[:count]] = True
    return chosen


def nucleus(logits: Tensor, mass: float, allowed: Tensor) -> Tensor:
    """The fewest of the allowed pages whose softmax reaches `mass`: bool [..., own + 1]; `allowed` [..., own + 1]."""
    chosen = torch.zeros(*logits.shape[:-1], allowed.shape[-1], dtype=torch.bool)
    rows = rows_of(allowed.expand(chosen.shape)[..., :-1])
    for row, free, mask in zip(rows_of(logits), rows, rows_of(chosen), strict=True):
        if not free.any():
            continue
        weight = torch.softmax(row.masked_fill(~free, -math.inf), 0)
        order = weight.argsort(descending=True)
        total = weight[order].cumsum(0)
        assert ((total - mass).abs() > MARGIN).all(), "the mass ends at a page's edge"
        needed = min(int((total < mass).sum()) + 1, int(free.sum()))
        mask[order[:needed]] = True
    return chosen


def drawn(look: Look, count: int, forced: Tensor) -> Tensor:
    """The counter-based random pages: the `count` smallest hashes outside `forced`."""

    def mix(x: Tensor) -> Tensor:
        x = x ^ (x >> 16)
        x = (x * 0x7FEB352D) % 2**32
        x = x ^ (x >> 15)
        x = (x * 0x846CA68B) % 2**32
        return x ^ (x >> 16)

    h = mix(torch.full((look.own,), 0x9E3779B9, dtype=torch.int64))
    for fact in (0, look.layer, look.kv):
        h = mix(h ^ fact)
    h = mix(mix(h ^ torch.arange(look.own)) ^ (look.length - 1))
    return best(-h.double(), count, forced)


def everything(look: Look) -> Tensor:
    return torch.ones(look.own + 1, dtype=torch.bool)


def top(look: Look, score: Tensor, *, pooled: bool = False) -> Answer:
    """Sinks, a window and the best `budget` pages between."""
    forced = ends(look)
    return Answer(forced | best(score, look.knob("budget"), forced, pooled=pooled), [score])


def in_prefill(look: Look, answer: Answer) -> Answer:
    """A program for prefill alone reads everything in decode."""
    return answer if look.block is not None else Answer(everything(look))


def share_of_pages(look: Look) -> int:
    return max(4, math.floor(look.knobs["fraction"] * (look.own + 1)))


def last_due(look: Look) -> Look:
    """The look at which a choice that is renewed at every `every`-th position was last made."""
    steps = [*look.earlier, look]
    every = look.knob("every")
    return [x for i, x in enumerate(steps) if i == 0 or (x.length - 1) % every == 0][-1]


def carried(look: Look, chosen: Tensor, made_at: Look) -> Tensor:
    """A set of candidates of an earlier step as a set of now."""
    now = torch.zeros(*chosen.shape[:-1], look.own + 1, dtype=torch.bool)
    now[..., : made_at.own] = chosen[..., : made_at.own]
    return now


# Scores


def envelope(q: Tensor, keys: Tensor) -> Tensor:
    """Quest's bound [head, page] as two matrix products: positive parts meet maxima, negative parts minima."""
    return q.clamp(min=0) @ keys.amax(1).T + q.clamp(max=0) @ keys.amin(1).T


def softmax_of(look: Look, x: Tensor) -> Tensor:
    return torch.softmax(look.scale * x, -1)


def page_mass(look: Look, q: Tensor, keys: Tensor) -> Tensor:
    """log of the attention mass of every page [head, page], unnormalised."""
    return torch.logsumexp(look.scale * torch.einsum("hc,ptc->hpt", q, keys), 2)


def in_fp8(x: Tensor) -> Tensor:
    """[page, ...] as stored in fp8 (e4m3) with one scale for each page."""
    x = x.float()
    size = x.abs().flatten(1).amax(1) if x.numel() else x.new_zeros(x.shape[0])
    scale = torch.where(size > 0, size / 448.0, 1.0).view(-1, *[1] * (x.dim() - 1))
    return ((x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale).double()


# Decode


def dense(look: Look) -> Answer:
    return Answer(everything(look))


def sink_window(look: Look) -> Answer:
    return Answer(ends(look))


def bigbird(look: Look) -> Answer:
    forced = ends(look)
    return Answer(forced | drawn(look, look.knob("random_pages"), forced))


def strided(look: Look) -> Answer:
    return Answer((torch.arange(look.own + 1) % look.knob("stride_pages") == 0) | ends(look, sink=0))


def centroid(look: Look) -> Answer:
    return top(look, (look.q @ look.centres.T).amax(0))


def quest(look: Look) -> Answer:
    return top(look, envelope(look.q, look.keys).amax(0))


def gqa_quest(look: Look) -> Answer:
    score, forced = envelope(look.q, look.keys).mean(0), ends(look)
    return Answer(forced | best(score, share_of_pages(look), forced), [score])


def top_p(look: Look) -> Answer:
    score, forced = (look.q @ look.centres.T).amax(0), ends(look)
    chosen = nucleus(look.scale * score, look.knobs["mass"], ~forced)
    return Answer(forced | (chosen & best(score, share_of_pages(look), forced)), [score])


def subpage_quest(look: Look) -> Answer:
    parts = look.keys.chunk(look.knob("sub"), 1)
    return top(look, torch.stack([envelope(look.q, part) for part in parts]).amax((0, 1)))


def value_energy(look: Look) -> Answer:
    mass = softmax_of(look, look.q @ look.centres.T)
    return top(look, (mass * torch.linalg.vector_norm(look.values, dim=2).mean(1)).amax(0))


def block_topk(look: Look) -> Answer:
    return top(look, look.q.mean(0) @ look.centres.T)


def block_softmax(look: Look) -> Answer:
    return top(look, softmax_of(look, look.q @ look.centres.T).amax(0))


def centered_block(look: Look) -> Answer:
    score = (look.q @ look.centres.T).mean(0)
    score = score - score.mean() if look.own else score
    forced = ends(look)
    assert look.own < 2 or (score.abs() > MARGIN).all()
    over = torch.cat([score > 0, torch.tensor([False])])
    return Answer(forced | (over & best(score, look.knob("budget"), forced)), [score])


def value_centroid(look: Look) -> Answer:
    energy = look.values.square().sum(2).sqrt().mean(1)
    return top(look, (look.q.mean(0) @ look.centres.T) * energy)


def masked_quest(look: Look) -> Answer:
    kept = (torch.arange(look.q.shape[1]) >= 8).double()
    return top(look, envelope(look.q * kept, look.keys).amax(0))


def quest_heads(look: Look) -> Answer:
    if look.layer < look.knob("dense_layers"):
        return Answer(everything(look).expand(len(look.q), -1))
    return top(look, envelope(look.q, look.keys))


def quest_shared(look: Look) -> Answer:
    score = torch.stack([envelope(x.q.mean(0)[None], x.keys)[0] for x in look.heads]).sum(0)
    forced = ends(look)
    return Answer(forced | best(score, share_of_pages(look), forced), [score])


def lserve(look: Look) -> Answer:
    then = last_due(look)
    score = subpage_quest(then).scores[0]
    chosen = best(score, look.knob("budget"), ends(then))
    return Answer(ends(look) | carried(look, chosen, then), [subpage_quest(look).scores[0]])


def lserve_centroid(look: Look) -> Answer:
    parts = look.keys.unflatten(1, (look.knob("sub"), -1)).mean(2)
    return top(look, torch.einsum("c,pgc->pg", look.q.mean(0), parts).amax(1))


def over_steps(look: Look, term: Callable[[Look], Tensor]) -> Tensor:
    """decay * (what was gathered before) + the step's own term, [page]."""
    gathered = torch.zeros(0, dtype=torch.float64)
    for step in [*look.earlier, look]:
        fresh = torch.zeros(step.own, dtype=torch.float64)
        fresh[: len(gathered)] = gathered
        gathered = look.knobs["decay"] * fresh + term(step)
    return gathered


def running_average(look: Look) -> Answer:
    return top(look, over_steps(look, lambda step: step.q.mean(0) @ step.centres.T))


def h2o_blocks(look: Look) -> Answer:
    mean = look.q.mean(0)
    return top(look, mean @ look.centres.T + look.knobs["weight"] * envelope(mean[None], look.keys)[0])


def gqa_h2o_blocks(look: Look) -> Answer:
    average = (look.q @ look.centres.T).amax(0)
    return top(look, average + look.knobs["weight"] * envelope(look.q, look.keys).amax(0))


def top_tokens(look: Look, score: Tensor) -> Answer:
    """The first and the last tokens and the heaviest between."""
    forced = ends(look, look.knob("sink_tokens") if "sink_tokens" in look.knobs else 0, look.knob("recent_tokens"))
    return Answer(forced | best(score, look.knob("heavy_tokens"), forced), [score])


def h2o_tokens(look: Look) -> Answer:
    return top_tokens(look, over_steps(look, lambda step: softmax_of(step, step.q.mean(0) @ step.k[:-1].T)))


def gqa_h2o_tokens(look: Look) -> Answer:
    return top_tokens(look, over_steps(look, lambda step: softmax_of(step, step.q @ step.k[:-1].T).amax(0)))


def snapkv(look: Look) -> Answer:
    def observed(at: Look) -> Tensor:
        mass = torch.softmax(page_mass(at, at.q, at.keys), 1)
        near = look.knob("near")
        return torch.nn.functional.max_pool1d(mass, near, 1, near // 2) if at.own else mass

    then = last_due(look)
    chosen = best(observed(then), look.knob("budget"), ends(then), pooled=True)
    return Answer(ends(look) | carried(look, chosen, then), [observed(look)])


def tidal(look: Look) -> Answer:
    anchors = {*range(look.knob("anchor") + 1), math.floor(look.knobs["again"] * look.layers)}
    stack = [*look.below, look]
    anchor = [x for x in stack if x.layer in anchors][-1]
    score = torch.einsum("hc,ptc->hpt", anchor.q, anchor.keys).amax((0, 2))
    if look.layer in anchors:
        return Answer(everything(look), [score])
    forced = ends(look)
    return Answer(forced | best(score, look.knob("budget"), forced))


def twilight(look: Look) -> Answer:
    low, high, keys = in_fp8(look.keys.amin(1)), in_fp8(look.keys.amax(1)), in_fp8(look.keys)
    rough = torch.maximum(look.q[:, None] * low, look.q[:, None] * high).sum(2).amax(0)
    forced = ends(look)
    shortlist = best(rough, share_of_pages(look), forced)
    fine = page_mass(look, look.q, keys)
    return Answer(forced | nucleus(fine, look.knobs["mass"], shortlist), [rough, fine])


def arkvale(look: Look) -> Answer:
    radius = (look.keys - look.centres[:, None]).square().sum(2).sqrt()
    radius = radius.amax(1)
    return top(look, (look.q @ look.centres.T + look.q.square().sum(1).sqrt()[:, None] * radius).amax(0))


def rocketkv(look: Look) -> Answer:
    size = look.q.abs().sum(0)
    kept = torch.zeros_like(size)
    kept[size.topk(min(look.knob("channels"), len(size))).indices] = 1.0
    return top(look, envelope(look.q * kept, look.keys).amax(0))


def tokens_read(look: Look, mask: Tensor, touched: Tensor) -> Tensor:
    """Tokens of the chosen and the touched pages as a mask [head, tokens]; `touched`: every token that is there."""
    chosen = mask.expand(len(look.q), -1)[:, : look.own].repeat_interleave(look.page, 1)
    rest = torch.ones(len(look.q), len(touched) - chosen.shape[1], dtype=torch.bool)
    return torch.cat([chosen, rest], 1)


def one_softmax(logits: list[Tensor], values: list[Tensor]) -> Tensor:
    """[head, n] logits and [n, channel] values, in several parts, under a single softmax."""
    return torch.softmax(torch.cat(logits, 1), 1) @ torch.cat(values)


def vattention(look: Look) -> Answer:
    score, forced = (look.q @ look.centres.T).amax(0), ends(look)
    heavy = forced | best(score, look.knob("budget"), forced)
    sample = drawn(look, look.knob("random_pages"), heavy)
    weight = torch.zeros(look.own + 1, dtype=torch.float64)
    weight[sample] = math.log(max(1, int((~heavy[:-1]).sum())) / max(1, int(sample.sum())))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        read = tokens_read(look, heavy | sample, k)
        extra = torch.zeros(len(k), dtype=torch.float64)
        extra[: look.own * look.page] = weight[:-1].repeat_interleave(look.page)
        return one_softmax([(look.scale * q @ k.T + extra).masked_fill(~read, -math.inf)], [v])

    return Answer(heavy | sample, [score], attend)


def retroinfer(look: Look) -> Answer:
    found = centroid(look)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """exp(q.k) v over what is read, n exp(q.c) mean(v) over what is not, one denominator."""
        read = tokens_read(look, found.pages, k)
        exact = torch.exp(look.scale * q @ k.T) * read
        rest = (~with_own(found.pages)[:-1]).double()
        near = look.page * torch.exp(look.scale * q @ look.centres.T) * rest
        return (exact @ v + near @ look.values.mean(1)) / (exact.sum(1) + near.sum(1))[:, None]

    return Answer(found.pages, found.scores, attend)


# Prefill


def a_shape(look: Look) -> Answer:
    return in_prefill(look, Answer(ends(look)))


def local_global(look: Look) -> Answer:
    page, span = torch.arange(look.own + 1), look.knob("span")
    return in_prefill(look, Answer((page // span == look.own // span) | (page % span == span - 1)))


def bigbird_prefill(look: Look) -> Answer:
    return in_prefill(look, bigbird(look))


def block_sparse(look: Look) -> Answer:
    return in_prefill(look, top(look, look.pooled @ look.centres.T))


def vertical(look: Look) -> Answer:
    if look.block is None:
        return Answer(everything(look))
    return top(look, page_mass(look, look.block[:, -16:].mean(1), look.keys))


def flexprefill(look: Look) -> Answer:
    score, forced = look.pooled @ look.centres.T, ends(look)
    few = best(score, look.knob("budget"), forced)
    return in_prefill(look, Answer(forced | few | nucleus(look.scale * score, look.knobs["mass"], ~forced), [score]))


def cosine(x: Tensor) -> Tensor:
    """Mean cosine of all pairs of vectors, [...] of x [..., vector, channel]."""
    unit = torch.nn.functional.normalize(x, dim=-1)
    return (unit @ unit.transpose(-1, -2)).mean((-1, -2))


def sparge(look: Look) -> Answer:
    if look.block is None:
        return Answer(everything(look))
    least = look.knobs["least"]
    alike, even = cosine(look.keys) > least, cosine(look.block) > least
    score = look.pooled @ look.centres.T
    kept = torch.cat([alike, torch.tensor([False])])
    chosen = nucleus(look.scale * score, look.knobs["mass"], kept)
    chosen[:, :-1] |= ~alike | ~even[:, None]
    known = score.masked_fill(~alike | ~even[:, None], math.nan)
    return Answer(chosen, [known])


def moba(look: Look) -> Answer:
    score = look.pooled @ look.centres.T
    return Answer(best(score, look.knob("blocks"), torch.zeros(look.own + 1, dtype=torch.bool)), [score])


def kernels(look: Look, x: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of half a page of vectors at every quarter of a page, all inside complete pages."""
    size = look.page // 2
    starts = range(0, look.own * look.page - size + 1, size // 2)
    return torch.stack([weights @ x[i : i + size] for i in starts]) if look.own else x[:0]


def touching(look: Look, page: int) -> range:
    """The kernels that share a token with a page: those that begin in it, and the one before."""
    return range(max(0, 4 * page - 1), min(4 * page + 4, 4 * look.own - 1))


def infllm_v2(look: Look) -> Answer:
    weights = torch.full((look.page // 2,), 2.0 / look.page, dtype=torch.float64)
    shares = softmax_of(look, look.pooled @ kernels(look, look.k, weights).T).sum(0)
    score = torch.stack([shares[list(touching(look, p))].amax() for p in range(look.own)]) if look.own else shares
    return top(look, score, pooled=True)


# Latent attention


def mla_rope_unaware(look: Look) -> Answer:
    return top(look, look.q[:, : look.latent].mean(0) @ look.centres[:, : look.latent].T)


def mla_rope_unaware_subpage(look: Look) -> Answer:
    parts = look.keys[..., : look.latent].unflatten(1, (look.knob("sub"), -1)).mean(2)
    return top(look, torch.einsum("c,pgc->pg", look.q[:, : look.latent].mean(0), parts).amax(1))


def mla_rope_weighted(look: Look) -> Answer:
    b = look.knobs["position_weight"]
    weights = torch.full((look.q.shape[1],), b, dtype=torch.float64)
    weights[: look.latent] = 1 - b
    return top(look, (look.q.mean(0) * weights) @ look.centres.T)


# Learned


def mla_learned(look: Look) -> Answer:
    query_map, key_map = (look.learned(name, per_kv_head=False) for name in ("query_map", "key_map"))
    folded = torch.einsum("hrc,rd->hcd", query_map, key_map)
    return top(look, torch.einsum("hc,hcd,pd->p", look.q, folded, look.centres))


def top_share(look: Look, score: Tensor) -> Answer:
    forced = ends(look)
    return Answer(forced | best(score, share_of_pages(look), forced), [score])


def double_sparsity(look: Look) -> Answer:
    heavy = look.learned("channels").long()
    return top_share(look, torch.einsum("hc,ptc->hpt", look.q[:, heavy], look.keys[..., heavy]).amax((0, 2)))


def loki(look: Look) -> Answer:
    basis = look.learned("basis")
    return top_share(look, torch.einsum("hc,ptc->hpt", look.q @ basis.T, look.keys @ basis.T).amax((0, 2)))


def seer_keys(look: Look) -> Tensor:
    together = torch.cat([look.keys.amax(1), look.keys.amin(1), look.centres], 1)
    return together @ torch.cat([look.learned(f"{name}_gate") for name in ("max", "min", "mean")], 1).T


def seer_attention(look: Look) -> Answer:
    if look.block is None:
        return Answer(everything(look))
    gate = torch.softmax(
        torch.einsum("hc,hrc,pr->hp", look.pooled, look.learned("query_gate"), seer_keys(look)) / 8.0, 1
    )
    forced, threshold = ends(look), look.knobs["threshold"]
    assert ((gate - threshold).abs() > MARGIN).all()
    over = torch.cat([gate > threshold, torch.zeros(len(gate), 1, dtype=torch.bool)], 1)
    return Answer(forced | over, [gate])


def seer_decode(look: Look) -> Answer:
    query = torch.einsum("hc,hrc->r", look.q, look.learned("query_gate"))
    return top(look, torch.softmax(seer_keys(look) @ query / 8.0, 0))


def streaming_heads(look: Look) -> Answer:
    return Answer(everything(look) if look.learned("retrieval") > 0.5 else ends(look))


def nsa(look: Look) -> Answer:
    weights = torch.cat([look.learned(name, per_kv_head=False) for name in ("early", "late")])
    compressed_keys, compressed_values = kernels(look, look.k, weights), kernels(look, look.v, weights)
    mass = softmax_of(look, look.pooled @ compressed_keys.T)
    quarter = look.page // 4
    score = torch.zeros(look.own, dtype=torch.float64)
    for p in range(look.own):
        for i in touching(look, p):
            inside = min((p + 1) * look.page, (i + 2) * quarter) - max(p * look.page, i * quarter)
            score[p] += mass[:, i].sum() * inside / quarter
    found = top(look, score)
    local = ends(look, sink=0, recent=look.knob("local"))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def over(mask: Tensor) -> Tensor:
            return one_softmax([(look.scale * q @ k.T).masked_fill(~tokens_read(look, mask, k), -math.inf)], [v])

        def gate(name: str) -> Tensor:
            return torch.sigmoid((q * look.learned(f"{name}_gate")).sum(1, keepdim=True))

        result = gate("select") * over(found.pages) + gate("window") * over(local)
        if look.own:
            result = result + gate("compress") * one_softmax([look.scale * q @ compressed_keys.T], [compressed_values])
        return result

    return Answer(found.pages | local, found.scores, attend)


def dsa(look: Look) -> Answer:
    score = torch.zeros(look.own, dtype=torch.float64)
    for x in look.heads:
        index = in_fp8(x.k[:-1] @ x.learned("key_index").T)
        for query, weigh in zip(x.q, x.learned("weigh"), strict=True):
            score += (query @ weigh) * torch.relu(index @ (x.learned("query_index") @ query))
    return top_tokens(look, score)


ORACLES: dict[str, Oracle] = {
    "mla_block": block_topk,
    "mla_subpage": lserve_centroid,
    **{
        oracle.__name__: oracle
        for oracle in (
            dense, sink_window, bigbird, strided, centroid, quest, gqa_quest, top_p, subpage_quest, value_energy,
            block_topk, block_softmax, centered_block, value_centroid, masked_quest, quest_heads, quest_shared, lserve,
            lserve_centroid, running_average, h2o_blocks, gqa_h2o_blocks, h2o_tokens, gqa_h2o_tokens, snapkv, tidal,
            twilight, arkvale, rocketkv, vattention, retroinfer, a_shape, local_global, bigbird_prefill, block_sparse,
            vertical, flexprefill, sparge, moba, infllm_v2, mla_rope_unaware, mla_rope_unaware_subpage,
            mla_rope_weighted, double_sparsity, loki, seer_attention, seer_decode, streaming_heads, nsa, dsa,
            mla_learned,
        )
    },
}  # fmt: skip
