from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class GQAH2OBlocks:
    """A weighted sum of the best average and the best upper bound that any head of the group has for a page.

    score(p) = max over heads of q . mean(K_p) + weight * max over heads of sum over channels of max(q min(K_p), q
    max(K_p))
    Source: `gqa_h2o_sparse_attention` of Vortex (arXiv 2606.06453), named after the heavy hitters of H2O (Zhang et
    al., Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models, arXiv 2306.14048).
    Deviations: none from Vortex; unlike in H2O nothing is accumulated over the steps and nothing is evicted.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages
    weight = knob.float(0.05, 4.0, log=True, default=0.5)

    def summarize(k): return dict(centre=k.mean(token), lo=k.min(token), hi=k.max(token))

    def score(q, s):
        average = dot(q, s.centre, channel).max(head)
        return average + weight * maximum(q * s.lo, q * s.hi).sum(channel).max(head)

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)
