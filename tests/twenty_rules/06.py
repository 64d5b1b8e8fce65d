from vortexlab.dsl import *


@program(page=16, summaries="bf16")
class FewChannels:
    """Exact products over the first 32 channels, best token and head."""

    def summarize(k):
        return dict(part=k.slice(channel, 0, 32))

    def score(q, s):
        return dot(q.slice(channel, 0, 32), s.part, channel).max(token, head)

    def select(score):
        forced = first(1) | last(2)
        return forced | topk(score, 40, among=~forced)
