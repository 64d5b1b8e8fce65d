from vortexlab.dsl import *


@program(page=64, block=64)
class FlexPrefill:
    """Prefill in which every block and head reads as many pages as its estimated attention needs.

    the fewest pages whose softmax(scale * mean of the block's queries . mean(K_p)) reaches `mass`, and never fewer
    than `budget`; decode is dense
    Source: the query-aware pattern of FlexPrefill (Lai et al., A Context-Aware Sparse Attention Mechanism for
    Efficient Long-Sequence Inference, arXiv 2502.20766).
    Deviations: every head is query-aware; the paper tests each head by a Jensen-Shannon divergence and gives the
    others vertical and slash lines.
    """

    mass = knob.float(0.3, 0.99, default=0.95)
    budget = knob.int(4, 512, log=True, default=16)  # pages, at least
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=1)  # pages

    def summarize(k): return dict(centre=k.mean(token))

    def pool(q): return q.mean(query)

    def score(q, s): return dot(q, s.centre, channel)

    def select(score, ctx):
        forced = first(sink) | last(recent)
        chosen = topp(score, mass, scale=ctx.scale, among=~forced) | topk(score, budget, among=~forced)
        return where(ctx.prefill, forced | chosen, everything())
