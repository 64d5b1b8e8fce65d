from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class ValueCentroid:
    """Block top-k weighted by how large the values of a page are.

    score(p) = (mean over heads of q . mean(K_p)) * mean over tokens of |v|
    Source: `venergy_gated_centroid` of Vortex (arXiv 2606.06453), after VATP (Guo et al., Attention Score is not All
    You Need for Token Importance Indicator in KV Cache Reduction, arXiv 2406.12335).
    Deviations: none from Vortex; VATP weights attention probabilities of tokens by the 1-norm of their values.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages

    def summarize(k, v): return dict(centre=k.mean(token), energy=v.norm(channel).mean(token))

    def score(q, s): return dot(q.mean(head), s.centre, channel) * s.energy

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)
