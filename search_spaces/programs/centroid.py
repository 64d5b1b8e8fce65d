from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class Centroid:
    """Pages whose mean key has the highest dot product with the query.

    score(p) = max over heads of q . mean(K_p)
    Source: the gate of MoBA (Lu et al., Mixture of Block Attention for Long-Context LLMs, arXiv 2502.13189).
    Deviations: one list per KV head, by the best of its query heads, where MoBA has one per query head.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages

    def summarize(k): return dict(centre=k.mean(token))

    def score(q, s): return dot(q, s.centre, channel).max(head)

    def select(score): return first(sink) | last(recent) | topk(score, budget, among=~(first(sink) | last(recent)))
