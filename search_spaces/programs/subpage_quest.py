from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class SubpageQuest:
    """Quest on parts of a page: a page scores as high as its best part, so one key does not blur the whole envelope.

    score(p) = max over heads and parts j of sum over channels of max(q * min(K_pj), q * max(K_pj))
    Source: the hierarchical pages of LServe (Yang et al., Efficient Long-sequence LLM Serving with Unified Sparse
    Attention, arXiv 2502.14866); `lserve_sparse_attention` of Vortex (arXiv 2606.06453).
    Deviations: the number of parts is a knob; the selection is not reused over steps (lserve has that).
    """

    sub = knob.choice(2, 4, 8, default=4)
    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages

    def summarize(k):
        parts = k.split(token, part=sub)
        return dict(lo=parts.min(token), hi=parts.max(token))

    def score(q, s):
        bound = maximum(q * s.lo, q * s.hi).sum(channel)
        return bound.max(part).max(head)

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)
