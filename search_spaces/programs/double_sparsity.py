from vortexlab.dsl import *


@program(page=knob.choice(1, 8, 16, 32, 64, default=16))
class DoubleSparsity:
    """Scores on the few channels that carry most of q . k, found offline for every layer and KV head.

    score(p) = max over heads and tokens of sum over d in `channels` of q_d k_d
    Source: Double Sparsity (Yang et al., Post-Training Sparse Attention with Double Sparsity, arXiv 2408.07092).
    Parameters: channels [layer, KV head, 16], numbers of channels.
    Deviations: with pages of 1 token its selection, otherwise pages by their best token; all heads of a group share
    the channels and the list; the label cache has the precision of the cache instead of 4 bits.
    """

    fraction = knob.float(0.005, 0.5, log=True, default=0.0625)  # of pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages
    channels = param(rank=16, kind="int", per_kv_head=True)

    def summarize(k): return dict(label=k.take(channel, channels, fill=0.0))

    def score(q, s): return dot(q.take(channel, channels, fill=0.0), s.label, rank).max(token).max(head)

    def select(score, ctx):
        forced = first(sink) | last(recent)
        return forced | topk(score, maximum(4, floor(fraction * ctx.pages)), among=~forced)
