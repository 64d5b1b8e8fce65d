from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class CenteredBlock:
    """Block top-k whose scores are measured from their mean over the context.

    score(p) = s(p) - mean over pages of s, s(p) = mean over heads of q . mean(K_p); pages above the average,
    at most `budget`
    Source: `centered_block_sparse_attention` of Vortex (arXiv 2606.06453).
    Deviations: with top-k alone centring changes no selection, so what lies below the average is left out here.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages

    def summarize(k): return dict(centre=k.mean(token))

    def score(q, s):
        close = dot(q.mean(head), s.centre, channel)
        return close - close.mean(page)

    def select(score):
        forced = first(sink) | last(recent)
        return forced | above(score, 0.0, max=budget, among=~forced)
