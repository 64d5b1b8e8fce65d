from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class QuestShared:
    """Quest with one list per request: the mean query of each group, bounds added up over the KV heads.

    score(p) = sum over KV heads of sum over channels of max(q' * min(K_p), q' * max(K_p)), q' = mean over the group of
    q
    Source: the Quest variant of the serving engine SGLang, after Quest (Tang et al., arXiv 2406.10774).
    Deviations: none in the score; the engine's budget is a ratio of the context's pages.
    """

    fraction = knob.float(0.005, 0.5, log=True, default=0.1)  # of pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages

    def summarize(k): return dict(lo=k.min(token), hi=k.max(token))

    def score(q, s):
        mean = q.mean(head)
        return share(maximum(mean * s.lo, mean * s.hi).sum(channel), "sum")

    def select(score, ctx):
        forced = first(sink) | last(recent)
        return forced | topk(score, maximum(4, floor(fraction * ctx.pages)), among=~forced)
