from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class RetroInfer:
    """The best pages exactly, all others by one entry each: their mean key and mean value, weighted by their tokens.

    score(p) = max over heads of q . mean(K_p); output = softmax over the tokens of the chosen pages and one entry per
    other page with key mean(K_p), value mean(V_p) and weight (tokens of a page)
    Source: RetroInfer (Chen et al., A Vector-Storage Approach for Scalable Long-Context LLM Inference, arXiv
    2505.02922), whose estimate of a cluster is n_c exp(q . c) mean(v).
    Deviations: contiguous pages instead of k-means clusters; everything not read exactly is estimated, not a zone of
    it; all keys and values stay where they are.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages

    def summarize(k, v): return dict(centre=k.mean(token), value=v.mean(token))

    def score(q, s): return dot(q, s.centre, channel).max(head)

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)

    def attend(s, pages, ctx):
        weight = log(float(ctx.page))
        return attention(pages, keys=s.centre, values=s.value, among=~pages, entry_log_weight=weight)
