from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class GQAQuest:
    """Quest whose reduction over the query heads of a group is a choice, with a budget in proportion to the context.

    score(p) = reduce over heads of sum over channels of max(q * min(K_p), q * max(K_p))
    Source: Quest (Tang et al., arXiv 2406.10774) under grouped-query attention (Ainslie et al., arXiv 2305.13245);
    serving engines differ in the reduction: the maximum, the mean or the sum over the heads of a group.
    Deviations: one list per KV head; the budget is a share of the pages; no dense layers.
    """

    reduce = knob.choice("max", "mean", "sum", default="max")
    fraction = knob.float(0.005, 0.5, log=True, default=0.1)  # of pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages

    def summarize(k):
        return dict(lo=k.min(token), hi=k.max(token))

    def score(q, s):
        return maximum(q * s.lo, q * s.hi).sum(channel).reduce(reduce, head)

    def select(score, ctx):
        forced = first(sink) | last(recent)
        return forced | topk(score, maximum(4, floor(fraction * ctx.pages)), among=~forced)
