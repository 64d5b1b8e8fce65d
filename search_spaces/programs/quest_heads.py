from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class QuestHeads:
    """Quest as its paper has it: every query head reads its own pages, and the first layers are dense.

    score(p, h) = sum over channels of max(q_h * min(K_p), q_h * max(K_p)), one list per query head
    Source: Quest (Tang et al., Query-Aware Sparsity for Efficient Long-Context LLM Inference, arXiv 2406.10774), which
    leaves the first 2 layers dense.
    Deviations: query heads of a group share a KV head, so what is read is the union of their lists; the newest pages
    are always read.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages
    dense_layers = knob.int(0, 4, default=2)

    def summarize(k): return dict(lo=k.min(token), hi=k.max(token))

    def score(q, s): return maximum(q * s.lo, q * s.hi).sum(channel)

    def select(score, ctx):
        forced = first(sink) | last(recent)
        return where(ctx.layer < dense_layers, everything(), forced | topk(score, budget, among=~forced))
