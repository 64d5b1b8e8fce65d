from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class MLARopeUnawareSubpage:
    """Parts of latent pages scored on the latent part of the keys alone. Needs latent attention.

    score(p) = max over parts j of mean over heads of q_nope W_UK . mean(c over part j)
    Source: `rope_unaware_lserve_centroid_mla` of Vortex (arXiv 2606.06453).
    Deviations: the turned channels are cut off instead of multiplied by 0; the number of parts is a knob.
    """

    sub = knob.choice(2, 4, 8, default=4)
    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages

    def summarize(k, ctx): return dict(centre=k.slice(channel, 0, ctx.latent).split(token, part=sub).mean(token))

    def score(q, s, ctx): return dot(q.slice(channel, 0, ctx.latent).mean(head), s.centre, channel).max(part)

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)
