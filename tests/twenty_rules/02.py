from vortexlab.dsl import *


@program(page=16)
class HalfPages:
    """Log-sum-exp over heads and the means of the two halves of a page; a tenth of the pages."""

    def summarize(k):
        return dict(parts=k.split(token, half=2).mean(token))

    def score(q, s, ctx):
        x = ctx.scale * dot(q, s.parts, channel)
        peak = x.max(half, head)
        return peak + log(exp(x - peak).sum(half, head))

    def select(score, ctx):
        forced = first(1) | last(2)
        budget = maximum(4, floor(0.1 * ctx.pages))
        return forced | topk(score, budget, among=~forced)
