from vortexlab.dsl import *


@program(page=1, summaries="fp8_e4m3")
class DSA:
    """A light indexer scores every token with its own small keys; one list of tokens for all heads.

    I(i) = sum over heads j of w_j * relu((W_q q_j) . (W_k k_i)), w_j = q_j . weigh_j, added up over KV heads
    Source: DeepSeek Sparse Attention (DeepSeek-V3.2, arXiv 2512.02556), index keys in fp8, top 2048 tokens.
    Parameters: query_index, key_index [layer, KV head, 128, channel], weigh [layer, KV head, head, channel].
    Deviations: the indexer reads attention's queries and keys instead of the layer's input, and has one index head per
    query head instead of 64; meant for MLA, where there is one KV head. Prefill is dense, which the indexer is trained
    to mimic.
    """

    heavy_tokens = knob.int(64, 4096, log=True, default=2048)
    recent_tokens = knob.int(1, 4096, log=True, default=1)
    query_index = param(channel, rank=128, per_kv_head=True)
    key_index = param(channel, rank=128, per_kv_head=True)
    weigh = param(head, channel, per_kv_head=True)

    def summarize(k): return dict(index=dot(k, key_index, channel).mean(token))

    def score(q, s):
        match = relu(dot(dot(q, query_index, channel), s.index, rank))
        return share((dot(q, weigh, channel) * match).sum(head), "sum")

    def select(score): return last(recent_tokens) | topk(score, heavy_tokens, among=~last(recent_tokens))
