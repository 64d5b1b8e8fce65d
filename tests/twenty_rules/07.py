from vortexlab.dsl import *


@program(page=16)
class Shortlist:
    """A quarter of the pages by centroid, of these the best 32 by Quest's upper bound."""

    def summarize(k):
        return dict(centre=k.mean(token), lo=k.min(token), hi=k.max(token))

    def score(q, s):
        coarse = dot(q, s.centre, channel).max(head)
        fine = maximum(q * s.lo, q * s.hi).sum(channel).max(head)
        return dict(coarse=coarse, fine=fine)

    def select(score, ctx):
        shortlist = topk(score.coarse, floor(0.25 * ctx.pages))
        return topk(score.fine, 32, among=shortlist)
