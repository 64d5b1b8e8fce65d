from vortexlab.dsl import *


@program(page=16)
class RunningMaximum:
    """The larger of the score now and the decayed score of the step before."""
    best = memory.step(page, init=-1000000.0)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s, m, ctx):
        now = ctx.scale * dot(q, s.centre, channel).max(head)
        return maximum(now, 0.95 * m.best)

    def select(score):
        return topk(score, 48)

    def remember(score):
        return dict(best=score)
