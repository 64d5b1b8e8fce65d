from vortexlab.dsl import *


@program(page=16)
class Cosine:
    """Pages whose mean key has a cosine above 0.3 with some query head."""

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        norms = q.norm(channel) * s.centre.norm(channel)
        return (dot(q, s.centre, channel) / maximum(norms, 0.000001)).max(head)

    def select(score):
        forced = first(1) | last(2)
        return forced | above(score, 0.3, max=128, among=~forced)
