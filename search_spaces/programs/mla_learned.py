from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class MLALearned:
    """Block top-k on latent keys behind a learned bilinear form of low rank.

    score(p) = (sum over heads of W_q,h q_h) . (W_k mean([c | k_pe] over the page))
    Source: `learned_block_sparse_mla` of Vortex (arXiv 2606.06453), which folds W_k and W_q into one matrix per head.
    Parameters: query_map [layer, head, 64, channel], key_map [layer, 64, channel].
    Deviations: the two factors are kept apart, so that a page is remembered in 64 numbers instead of a whole latent
    key.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages
    query_map = param(head, channel, rank=64)
    key_map = param(channel, rank=64)

    def summarize(k): return dict(low=dot(k.mean(token), key_map, channel))

    def score(q, s): return dot(dot(q, query_map, channel).sum(head), s.low, rank)

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)
