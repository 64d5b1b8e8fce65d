from vortexlab.dsl import *


@program(page=1)
class GQAH2OTokens:
    """The tokens that have gathered the most attention mass over the steps, by the head that gives them most.

    score_t(i) = max over heads of softmax over tokens(scale * q_t . k_i) + decay * score_{t-1}(i)
    Source: H2O (Zhang et al., Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models,
    arXiv 2306.14048); `gqa_h2o_token_sparse_attention` of Vortex (arXiv 2606.06453), whose decay is 0.984375.
    Deviations from H2O: nothing is evicted, so a token may come back; the mass is estimated over all earlier tokens,
    is not collected in prefill, and the query's own token takes no part in it.
    """

    heavy_tokens = knob.int(64, 4096, log=True, default=1024)
    sink_tokens = knob.int(0, 64, default=4)
    recent_tokens = knob.int(1, 4096, log=True, default=64)
    decay = knob.float(0.5, 1.0, default=0.984375)
    gathered = memory.step(page)

    def summarize(k): return dict(key=k.mean(token))

    def score(q, s, m, ctx):
        mass = softmax(ctx.scale * dot(q, s.key, channel), page).max(head)
        return mass + decay * m.gathered

    def select(score):
        forced = first(sink_tokens) | last(recent_tokens)
        return forced | topk(score, heavy_tokens, among=~forced)

    def remember(score): return dict(gathered=score)
