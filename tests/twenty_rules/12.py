from vortexlab.dsl import *


@program(page=16)
class EveryFourthLayer:
    """Each fourth layer selects, the layers between reuse its set."""

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score, ctx):
        forced = first(1) | last(2)
        return forced | reuse(topk(score, 32, among=~forced), layers=ctx.layer % 4 == 0)
