from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class BlockTopK:
    """Pages whose mean key is closest to the mean query of the group.

    score(p) = mean over heads of q . mean(K_p)
    Source: block top-k attention of Kinetics (Sadhukhan et al., Rethinking Test-Time Scaling Laws, arXiv 2506.05333);
    `block_sparse_attention` of Vortex (arXiv 2606.06453).
    Deviations: none at page level; the forced pages at both ends are ours.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages

    def summarize(k): return dict(centre=k.mean(token))

    def score(q, s): return dot(q.mean(head), s.centre, channel)

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)
