from vortexlab.dsl import *


@program(page=knob.choice(64, 128, 256, default=256), block=knob.choice(1, 16, 64, default=16))
class MoBA:
    """Mixture of block attention: every query head reads the blocks whose mean key it is closest to.

    score(p, h) = q_h . mean(K_p), one list per query head; the current block is always read
    Source: MoBA (Lu et al., Mixture of Block Attention for Long-Context LLMs, arXiv 2502.13189), 3 to 12 blocks of 512
    to 4096 tokens.
    Deviations: blocks of at most 256 tokens; in prefill `block` queries share their lists by their mean, 1 is the
    paper's; the current block counts beside the budget, not within it.
    """

    blocks = knob.int(2, 64, log=True, default=12)

    def summarize(k): return dict(centre=k.mean(token))

    def pool(q): return q.mean(query)

    def score(q, s): return dot(q, s.centre, channel)

    def select(score): return topk(score, blocks)
