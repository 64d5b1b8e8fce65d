from vortexlab.dsl import *


@program(page=16)
class Recency:
    """Centroid scores with a penalty that grows with the distance in pages; top-p."""

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s, ctx):
        between = ctx.pages - 2 - index(page)
        return dot(q, s.centre, channel).mean(head) - 0.02 * between

    def select(score):
        return topp(score, 0.9, max=96)
