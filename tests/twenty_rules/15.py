from vortexlab.dsl import *


@program(page=16)
class SomeRandom:
    """Forced pages, the top 24 and one random page for every 16 pages, all different."""

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score, ctx):
        forced = first(1) | last(2)
        best = forced | topk(score, 24, among=~forced)
        return best | random(ctx.pages // 16, among=~best)
