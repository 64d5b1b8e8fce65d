from vortexlab.dsl import *


@program(page=16)
class EveryOtherLayer:
    """Even layers are dense; odd ones read the pages with the largest mass times mean value."""

    def summarize(k, v):
        return dict(centre=k.mean(token), size=v.mean(token).norm(channel))

    def score(q, s):
        mass = softmax(dot(q, s.centre, channel), page)
        return (s.size * mass).max(head)

    def select(score, ctx):
        forced = first(1) | last(2)
        return where(ctx.layer % 2 == 0, everything(), forced | topk(score, 32, among=~forced))
