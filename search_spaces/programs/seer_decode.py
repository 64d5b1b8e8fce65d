from vortexlab.dsl import *


@program(page=64)
class SeerDecode:
    """Decode behind a learned gate that the heads of a group share.

    gate(p) = softmax over pages((sum over heads of W_h q_h) . (W_max max(K_p) + W_min min(K_p) + W_mean mean(K_p)) /
    8)
    Source: SeerAttention-R (Gao et al., Sparse Attention Adaptation for Long Reasoning, arXiv 2506.08889), blocks of
    64.
    Parameters: query_gate [layer, KV head, head, 64, channel], max_gate, min_gate, mean_gate [layer, KV head, 64,
    channel].
    Deviations: takes keys and queries after RoPE, where the paper takes them before and turns what it has pooled.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages
    query_gate = param(head, channel, rank=64, per_kv_head=True)
    max_gate = param(channel, rank=64, per_kv_head=True)
    min_gate = param(channel, rank=64, per_kv_head=True)
    mean_gate = param(channel, rank=64, per_kv_head=True)

    def summarize(k):
        ends = dot(k.max(token), max_gate, channel) + dot(k.min(token), min_gate, channel)
        return dict(gate=ends + dot(k.mean(token), mean_gate, channel))

    def score(q, s): return softmax(dot(dot(q, query_gate, channel).sum(head), s.gate, rank) / sqrt(64.0), page)

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)
