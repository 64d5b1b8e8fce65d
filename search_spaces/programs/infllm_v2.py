from vortexlab.dsl import *


@program(page=64, block=64)
class InfLLMv2:
    """Overlapping mean keys of 32 tokens every 16 share the attention out; a page takes the best share that touches it.

    c_i = mean of keys 16i..16i+31; r(i) = sum over heads of softmax over i(scale * q . c_i); score(p) = max of r(i)
    over all i whose tokens meet the page
    Source: InfLLM-V2 (Zhao et al., Dense-Sparse Switchable Attention for Seamless Short-to-Long Adaptation,
    arXiv 2509.24663), kernels of 32 tokens with stride 16, pages of 64.
    Deviations: the softmax is exact over all kernels instead of normalised by a coarser estimate; in prefill the 64
    queries of a block share one selection, by their mean.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=32)  # pages

    def summarize(k): return dict(parts=k.split(token, part=4).mean(token))

    def pool(q): return q.mean(query)

    def score(q, s, ctx):
        here = ctx.scale * dot(q, s.parts, channel)
        over = here.slice(part, 0, 1).shift(page, -1, fill=-1e30)
        kernels = (here + concat(here.slice(part, 1), over, part)) / 2.0
        weight = exp(kernels - kernels.max(part).max(page))
        share_of = (weight / weight.sum(part).sum(page)).sum(head)
        before = share_of.slice(part, -1).max(part).shift(page, 1, fill=0.0)
        return maximum(share_of.max(part), before)

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)
