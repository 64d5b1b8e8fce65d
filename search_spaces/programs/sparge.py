from vortexlab.dsl import *


@program(page=64, block=128)
class Sparge:
    """Prefill in which means stand for blocks only where their vectors are alike; what is not alike is always read.

    alike(X) = mean cosine of all pairs in X; per head the fewest alike pages whose softmax(scale * mean(Q_b) .
    mean(K_p)) reaches `mass`, all pages with alike(K_p) <= least, and everything where alike(Q_b) <= least; decode is
    dense
    Source: SpargeAttn (Zhang et al., Accurate and Training-free Sparse Attention Accelerating Any Model Inference,
    arXiv 2502.18137).
    Deviations: the second stage, which skips values of small weight, belongs to a kernel and is left out.
    """

    mass = knob.float(0.3, 0.99, default=0.95)
    least = knob.float(0.0, 0.9, default=0.6)  # mean cosine

    def summarize(k):
        unit = (k / maximum(k.norm(channel), 1e-6)).mean(token)
        return dict(centre=k.mean(token), alike=(unit * unit).sum(channel))

    def pool(q):
        unit = (q / maximum(q.norm(channel), 1e-6)).mean(query)
        # 0 tells `score` that the block's queries are not alike.
        return where((unit * unit).sum(channel) > least, q.mean(query), 0.0)

    def score(q, s):
        rough = q.norm(channel) == 0.0 or s.alike <= least
        return dict(rough=where(rough, 1.0, 0.0), close=where(s.alike <= least, -1e30, dot(q, s.centre, channel)))

    def select(score, ctx):
        chosen = topp(score.close, mass, scale=ctx.scale) | above(score.rough, 0.5)
        return where(ctx.prefill, chosen, everything())
