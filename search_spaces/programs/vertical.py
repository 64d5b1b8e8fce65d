from vortexlab.dsl import *


@program(page=64, block=64)
class Vertical:
    """Prefill in which the last queries of a block look at all keys, and the block reads what draws them most.

    score(p, h) = log of the sum over the page's tokens of exp(scale * q' . k), q' = mean of the block's last queries
    Source: the vertical lines of the vertical-slash pattern of MInference (Jiang et al., Accelerating Pre-filling for
    Long-Context LLMs via Dynamic Sparse Attention, arXiv 2407.02490).
    Deviations: whole pages instead of columns; every block has a probe of its own, since the end of the prompt must
    not decide what its beginning reads; the probe is the mean of its queries; slashes are the window alone. The keys
    themselves are the summary.
    """

    budget = knob.int(4, 512, log=True, default=16)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=8)  # pages

    def summarize(k): return dict(keys=k)

    def pool(q): return q.slice(query, -16).mean(query)

    def score(q, s, ctx):
        logits = ctx.scale * dot(q, s.keys, channel)
        top = logits.max(token)
        return top + log(exp(logits - top).sum(token))

    def select(score, ctx):
        forced = first(sink) | last(recent)
        return where(ctx.prefill, forced | topk(score, budget, among=~forced), everything())
