from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class MLARopeWeighted:
    """Block top-k on latent keys with a weight between the content and the position of a page. Needs latent attention.

    score(p) = (1 - b) * mean over heads of q_nope W_UK . mean(c) + b * mean over heads of q_pe . mean(k_pe)
    Source: `rope_weighted_block_sparse_mla` of Vortex (arXiv 2606.06453); its b is `position_weight`, 0.5 is
    rope-aware.
    Deviations: none.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages
    position_weight = knob.float(0.0, 1.0, default=0.3)

    def summarize(k): return dict(centre=k.mean(token))

    def score(q, s, ctx):
        mean = q.mean(head)
        content = dot(mean.slice(channel, 0, ctx.latent), s.centre.slice(channel, 0, ctx.latent), channel)
        position = dot(mean.slice(channel, ctx.latent), s.centre.slice(channel, ctx.latent), channel)
        return (1.0 - position_weight) * content + position_weight * position

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)
