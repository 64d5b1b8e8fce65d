from vortexlab.dsl import *


@program(page=16)
class TwoOutputs:
    """A fixed mixture of attention over the best pages and attention over the last ones."""

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return last(8) | topk(score, 32)

    def attend(score):
        return 0.7 * attention(topk(score, 32)) + 0.3 * attention(last(8))
