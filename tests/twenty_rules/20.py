from vortexlab.dsl import *


@program(page=64, summaries="fp8_e4m3")
class QuarterEnvelopes:
    """Quest's upper bound for each quarter of a page, in fp8."""

    def summarize(k):
        quarters = k.split(token, quarter=4)
        return dict(lo=quarters.min(token), hi=quarters.max(token))

    def score(q, s):
        return maximum(q * s.lo, q * s.hi).sum(channel).max(quarter, head)

    def select(score):
        return topk(score, 12)
