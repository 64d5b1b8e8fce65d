from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class TopP:
    """As many pages as it takes to gather a share of the estimated attention mass, so the budget follows the scores.

    score(p) = max over heads of q . mean(K_p); the fewest pages whose softmax(scale * score) reaches `mass`
    Source: Twilight (Lin et al., Adaptive Attention Sparsity with Hierarchical Top-p Pruning, arXiv 2502.02770).
    Deviations: pages scored by their mean key instead of tokens scored by quantised keys; one list per KV head.
    """

    mass = knob.float(0.3, 0.99, default=0.9)
    fraction = knob.float(0.005, 0.5, log=True, default=0.3)  # of pages, at most
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score, ctx):
        forced = first(sink) | last(recent)
        limit = maximum(4, floor(fraction * ctx.pages))
        return forced | topp(score, mass, scale=ctx.scale, max=limit, among=~forced)
