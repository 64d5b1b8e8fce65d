from vortexlab.dsl import *


@program(page=16)
class NearTheBest:
    """Pages whose scaled centroid score is within 3 of the best one's."""

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s, ctx):
        x = ctx.scale * dot(q, s.centre, channel).max(head)
        return x - x.max(page)

    def select(score):
        return above(score, -3.0, max=128)
