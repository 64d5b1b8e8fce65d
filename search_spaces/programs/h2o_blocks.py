from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class H2OBlocks:
    """A weighted sum of a page's average and of its upper bound, for the mean query of the group.

    score(p) = q' . mean(K_p) + weight * sum over channels of max(q' * min(K_p), q' * max(K_p)), q' = mean over heads
    of q
    Source: `h2o_sparse_attention` of Vortex (arXiv 2606.06453), named after the heavy hitters of H2O (Zhang et al.,
    Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models, arXiv 2306.14048).
    Deviations: none from Vortex; unlike in H2O nothing is accumulated over the steps and nothing is evicted.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages
    weight = knob.float(0.05, 4.0, log=True, default=0.5)

    def summarize(k): return dict(centre=k.mean(token), lo=k.min(token), hi=k.max(token))

    def score(q, s):
        mean = q.mean(head)
        return dot(mean, s.centre, channel) + weight * maximum(mean * s.lo, mean * s.hi).sum(channel)

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)
