from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class ValueEnergy:
    """Attention mass that a page is expected to draw, weighted by how large its values are.

    score(p) = max over heads of softmax over pages(scale * q . mean(K_p)) * mean over tokens of |v|
    Source: the value-aware importance of VATP (Guo et al., Attention Score is not All You Need for Token Importance
    Indicator in KV Cache Reduction, arXiv 2406.12335).
    Deviations: pages instead of tokens, estimated attention, the 2-norm instead of the 1-norm, and no eviction.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages

    def summarize(k, v):
        return dict(centre=k.mean(token), energy=v.norm(channel).mean(token))

    def score(q, s, ctx):
        mass = softmax(ctx.scale * dot(q, s.centre, channel), page)
        return (mass * s.energy).max(head)

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)
