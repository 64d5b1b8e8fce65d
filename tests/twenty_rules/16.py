from vortexlab.dsl import *


@program(page=16)
class ValueAware:
    """Attention mass of the centroid times the largest norm of a value in the page, best head."""

    def summarize(k, v):
        return dict(centre=k.mean(token), size=v.norm(channel).max(token))

    def score(q, s, ctx):
        mass = softmax(ctx.scale * dot(q, s.centre, channel), page)
        return (mass * s.size).max(head)

    def select(score):
        return topk(score, 32)
