from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class Quest:
    """Pages with the highest upper bound of q . k, from the envelope of their keys in every channel.

    score(p) = max over heads of sum over channels of max(q * min(K_p), q * max(K_p))
    Source: Quest (Tang et al., Query-Aware Sparsity for Efficient Long-Context LLM Inference, arXiv 2406.10774);
    `gqa_quest_sparse_attention` of Vortex (arXiv 2606.06453).
    Deviations: one list per KV head, by the best of its query heads; no dense layers (quest_heads has both as
    published).
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages

    def summarize(k): return dict(lo=k.min(token), hi=k.max(token))

    def score(q, s): return maximum(q * s.lo, q * s.hi).sum(channel).max(head)

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)
