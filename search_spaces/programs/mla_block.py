from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class MLABlock:
    """Block top-k on latent keys, aware of RoPE: the mean absorbed query against the mean latent key.

    score(p) = mean over heads of [q_nope W_UK | q_pe] . mean([c | k_pe] over the page)
    Source: `rope_aware_block_sparse_mla` of Vortex (arXiv 2606.06453); multi-head latent attention is that of
    DeepSeek-V2 (arXiv 2405.04434).
    Deviations: none. It is block_topk word for word: the mean logit of a page, RoPE included, is one dot product.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages

    def summarize(k): return dict(centre=k.mean(token))

    def score(q, s): return dot(q.mean(head), s.centre, channel)

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)
