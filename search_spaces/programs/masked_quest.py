from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class MaskedQuest:
    """Quest on a part of the channels: the first ones, which RoPE turns fastest, are left out of summaries and scores.

    score(p) = max over heads of sum over channels d >= 8 of max(q_d min(K_pd), q_d max(K_pd))
    Source: `masked_quest_sparse_attention` of Vortex (arXiv 2606.06453), after Quest (arXiv 2406.10774).
    Deviations: the channels are cut off instead of multiplied by 0, which also makes the summaries smaller.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages

    def summarize(k):
        kept = k.slice(channel, 8)
        return dict(lo=kept.min(token), hi=kept.max(token))

    def score(q, s):
        kept = q.slice(channel, 8)
        return maximum(kept * s.lo, kept * s.hi).sum(channel).max(head)

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)
