from vortexlab.dsl import *


@program(page=knob.choice(16, 32, 64, default=64))
class LServe:
    """Quest on parts of a page, with a selection that is kept for several steps.

    score(p) = max over heads and parts j of sum over channels of max(q * min(K_pj), q * max(K_pj)); chosen again at
    every `every`-th position
    Source: LServe (Yang et al., Efficient Long-sequence LLM Serving with Unified Sparse Attention, arXiv 2502.14866):
    physical pages of 64 tokens, logical ones of 16, reuse over 4 steps.
    Deviations: the static streaming heads are a program of their own, streaming_heads; its prefill kernel is left out.
    """

    sub = knob.choice(2, 4, 8, default=4)
    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages
    every = knob.int(1, 16, log=True, default=4)  # steps

    def summarize(k):
        parts = k.split(token, part=sub)
        return dict(lo=parts.min(token), hi=parts.max(token))

    def score(q, s): return maximum(q * s.lo, q * s.hi).sum(channel).max(part).max(head)

    def select(score):
        forced = first(sink) | last(recent)
        return forced | reuse(topk(score, budget, among=~forced), every=every)
