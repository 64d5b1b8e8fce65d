from vortexlab.dsl import *


@program(page=64, block=64)
class SeerAttention:
    """Prefill behind a learned gate on pooled queries and keys.

    gate(p) = softmax over pages(W_q mean(Q_b) . (W_max max(K_p) + W_min min(K_p) + W_mean mean(K_p)) / sqrt(64)), per
    query head; pages with gate > threshold; decode is dense
    Source: SeerAttention (Gao et al., Learning Intrinsic Sparse Attention in Your LLMs, arXiv 2410.13276), blocks of
    64.
    Parameters: query_gate [layer, KV head, head, 64, channel], max_gate, min_gate, mean_gate [layer, KV head, 64,
    channel].
    Deviations: pools keys and queries after RoPE, where the paper pools before it and turns the pooled ones.
    """

    threshold = knob.float(0.0001, 0.1, log=True, default=0.002)
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=1)  # pages
    query_gate = param(head, channel, rank=64, per_kv_head=True)
    max_gate = param(channel, rank=64, per_kv_head=True)
    min_gate = param(channel, rank=64, per_kv_head=True)
    mean_gate = param(channel, rank=64, per_kv_head=True)

    def summarize(k):
        ends = dot(k.max(token), max_gate, channel) + dot(k.min(token), min_gate, channel)
        return dict(gate=ends + dot(k.mean(token), mean_gate, channel))

    def pool(q): return q.mean(query)

    def score(q, s): return softmax(dot(dot(q, query_gate, channel), s.gate, rank) / sqrt(64.0), page)

    def select(score, ctx):
        forced = first(sink) | last(recent)
        return where(ctx.prefill, forced | above(score, threshold, among=~forced), everything())
