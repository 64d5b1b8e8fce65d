from vortexlab.dsl import *


@program(page=16)
class EveryEight:
    """Quest's selection, renewed every eight tokens; forced pages always fresh."""

    def summarize(k):
        return dict(lo=k.min(token), hi=k.max(token))

    def score(q, s):
        return maximum(q * s.lo, q * s.hi).sum(channel).max(head)

    def select(score):
        forced = first(1) | last(2)
        return forced | reuse(topk(score, 64, among=~forced), every=8)
