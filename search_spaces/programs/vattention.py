from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class VAttention:
    """The best pages, and a random sample of the rest that stands for all of it.

    heavy = forced + top pages by max over heads of q . mean(K_p); a random page of the rest gets the log-weight
    log(pages of the rest / pages drawn), so that sums over it estimate sums over the rest
    Source: vAttention (Desai et al., Verified Sparse Attention, arXiv 2510.05688).
    Deviations: pages instead of tokens; the size of the sample is a knob instead of following from an (epsilon, delta)
    bound per head, so the error carries no guarantee.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages
    random_pages = knob.int(1, 256, log=True, default=16)  # pages

    def summarize(k): return dict(centre=k.mean(token))

    def score(q, s): return dot(q, s.centre, channel).max(head)

    def select(score):
        forced = first(sink) | last(recent)
        heavy = forced | topk(score, budget, among=~forced)
        return heavy | random(random_pages, among=~heavy)

    def attend(score, pages):
        forced = first(sink) | last(recent)
        heavy = forced | topk(score, budget, among=~forced)
        rest = where(member(heavy), 0.0, 1.0).sum(page)
        weight = log(maximum(rest, 1.0) / clamp(rest, 1.0, float(random_pages)))
        return attention(pages, log_weight=where(member(heavy), 0.0, weight))
