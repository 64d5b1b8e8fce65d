from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16), summaries="fp8_e4m3")
class Twilight:
    """A cheap selector proposes pages generously; quantised keys then keep the fewest that gather a share of the mass.

    shortlist = top pages by max over heads of sum over channels of max(q * lo, q * hi); per head h the fewest pages of
    it whose softmax over the shortlist of log(sum over tokens of exp(scale * q_h . k8)) reaches `mass`
    Source: Twilight (Lin et al., Adaptive Attention Sparsity with Hierarchical Top-p Pruning, arXiv 2502.02770).
    Deviations: whole pages instead of tokens; quantised keys in fp8 instead of int4; the envelope is in fp8 as well.
    """

    mass = knob.float(0.3, 0.99, default=0.9)
    fraction = knob.float(0.005, 0.5, log=True, default=0.25)  # of pages, the shortlist
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages

    def summarize(k): return dict(lo=k.min(token), hi=k.max(token), keys=k)

    def score(q, s, ctx):
        bound = maximum(q * s.lo, q * s.hi).sum(channel).max(head)
        logits = ctx.scale * dot(q, s.keys, channel)
        top = logits.max(token)
        return dict(rough=bound, fine=top + log(exp(logits - top).sum(token)))

    def select(score, ctx):
        forced = first(sink) | last(recent)
        shortlist = topk(score.rough, maximum(4, floor(fraction * ctx.pages)), among=~forced)
        return forced | topp(score.fine, mass, among=shortlist)
