from vortexlab.dsl import *


@program(page=16, block=64)
class SparsePrefill:
    """Blocks of prefill choose pages by their mean query, one list per query head; decode is dense."""

    def summarize(k):
        return dict(centre=k.mean(token))

    def pool(q):
        return q.mean(query)

    def score(q, s):
        return dot(q, s.centre, channel)

    def select(score, ctx):
        forced = first(1) | last(2)
        candidates = where(index(page) < 0, 0, 1).sum(page)
        sparse = forced | topk(score, floor(0.125 * candidates), among=~forced)
        return where(ctx.prefill, sparse, everything())
