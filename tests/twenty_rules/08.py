from vortexlab.dsl import *


@program(page=16)
class OwnAndShared:
    """Sixteen pages of each query head's own and sixteen that all KV heads share."""

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        own = dot(q, s.centre, channel)
        return dict(own=own, common=own.max(head))

    def select(score):
        return topk(score.own, 16) | topk(share(score.common, "sum"), 16)
