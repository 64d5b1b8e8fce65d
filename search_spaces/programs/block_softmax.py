from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class BlockSoftmax:
    """Block top-k in which every query head first turns its scores into shares of its own attention.

    score(p) = max over heads of softmax over pages(scale * q . mean(K_p))
    Source: the selection of NSA (Yuan et al., Native Sparse Attention, arXiv 2502.11089) reduced to mean keys;
    `gqa_block_sparse_attention` of Vortex (arXiv 2606.06453).
    Deviations: NSA learns its compression, overlaps its blocks and adds the heads up; Vortex writes the scale as 0.09,
    here it is the model's.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages

    def summarize(k): return dict(centre=k.mean(token))

    def score(q, s, ctx): return softmax(ctx.scale * dot(q, s.centre, channel), page).max(head)

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)
