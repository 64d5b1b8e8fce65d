from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class MLASubpage:
    """Block top-k on parts of latent pages, aware of RoPE: a page scores as high as its best part.

    score(p) = max over parts j of mean over heads of [q_nope W_UK | q_pe] . mean([c | k_pe] over part j)
    Source: `lserve_centroid_mla` of Vortex (arXiv 2606.06453), after the hierarchical pages of LServe (arXiv
    2502.14866).
    Deviations: Vortex fixes parts of 16 tokens; here their number is a knob. It is lserve_centroid word for word.
    """

    sub = knob.choice(2, 4, 8, default=4)
    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages

    def summarize(k): return dict(centre=k.split(token, part=sub).mean(token))

    def score(q, s): return dot(q.mean(head), s.centre, channel).max(part)

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)
