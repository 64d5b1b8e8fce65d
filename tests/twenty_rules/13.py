from vortexlab.dsl import *


@program(page=16)
class SquareRoot:
    """Quest with a budget that follows the square root of the context."""

    def summarize(k):
        return dict(lo=k.min(token), hi=k.max(token))

    def score(q, s):
        return maximum(q * s.lo, q * s.hi).sum(channel).mean(head)

    def select(score, ctx):
        budget = maximum(8, floor(4 * sqrt(ctx.pages)))
        return topk(score, budget)
