from vortexlab.dsl import *


@program(page=16)
class MeanAndSpread:
    """Mean key score plus half of the standard deviation of the keys along the query, best head."""

    def summarize(k):
        centre = k.mean(token)
        off = k - centre
        return dict(centre=centre, var=(off * off).mean(token))

    def score(q, s):
        mean = dot(q, s.centre, channel)
        spread = sqrt(dot(q * q, s.var, channel))
        return (mean + 0.5 * spread).max(head)

    def select(score):
        forced = first(1) | last(2)
        return forced | topk(score, 48, among=~forced)
