from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class MLARopeUnaware:
    """Block top-k on the latent part of the keys alone; the part that RoPE turns is left out. Needs latent attention.

    score(p) = mean over heads of q_nope W_UK . mean(c over the page)
    Source: `rope_unaware_block_sparse_mla` of Vortex (arXiv 2606.06453), which found it much worse than the aware one.
    Deviations: the turned channels are cut off instead of multiplied by 0, which makes summaries smaller.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages

    def summarize(k, ctx): return dict(centre=k.slice(channel, 0, ctx.latent).mean(token))

    def score(q, s, ctx): return dot(q.slice(channel, 0, ctx.latent).mean(head), s.centre, channel)

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)
