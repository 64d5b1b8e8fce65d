from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class ArkVale:
    """Pages with the highest upper bound of q . k, from a ball around their keys.

    score(p) = max over heads of q . c_p + |q| * max over tokens of |k - c_p|, c_p = mean(K_p)
    Source: ArkVale (Chen et al., Efficient Generative LLM Inference with Recallable Key-Value Eviction, NeurIPS 2024).
    Deviations: of its bounding volumes the ball, as the cuboid is Quest; eviction to host memory and recall are left
    to the engine.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages

    def summarize(k):
        centre = k.mean(token)
        return dict(centre=centre, radius=(k - centre).norm(channel).max(token))

    def score(q, s): return (dot(q, s.centre, channel) + q.norm(channel) * s.radius).max(head)

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)
