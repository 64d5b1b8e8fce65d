from vortexlab.dsl import *


@program(page=64, block=64)
class BlockSparse:
    """Prefill in which every block of queries reads the blocks of keys whose mean is closest to its own mean.

    score(p, h) = mean of the block's queries of head h . mean(K_p), one list per query head; decode is dense
    Source: the block-sparse pattern of MInference (Jiang et al., Accelerating Pre-filling for Long-Context LLMs via
    Dynamic Sparse Attention, arXiv 2407.02490), blocks of 64.
    Deviations: all heads have this pattern; the number of blocks is one knob instead of a search for each head
    offline.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages

    def summarize(k): return dict(centre=k.mean(token))

    def pool(q): return q.mean(query)

    def score(q, s): return dot(q, s.centre, channel)

    def select(score, ctx):
        forced = first(sink) | last(recent)
        return where(ctx.prefill, forced | topk(score, budget, among=~forced), everything())
