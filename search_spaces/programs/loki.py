from vortexlab.dsl import *


@program(page=knob.choice(1, 8, 16, 32, 64, default=16))
class Loki:
    """Scores in the leading principal components of the keys, computed offline for every layer and KV head.

    score(p) = max over heads and tokens of (q B) . (k B), B = the first 32 principal axes of the keys
    Source: Loki (Singhania et al., Low-rank Keys for Efficient Sparse Attention, arXiv 2406.02542), a quarter of the
    channels.
    Parameters: basis [layer, KV head, 32, channel].
    Deviations: with pages of 1 token its selection, otherwise pages by their best token; the group shares one list;
    the principal axes are those of keys after RoPE.
    """

    fraction = knob.float(0.005, 0.5, log=True, default=0.25)  # of pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages
    basis = param(channel, rank=32, per_kv_head=True)

    def summarize(k): return dict(low=dot(k, basis, channel))

    def score(q, s): return dot(dot(q, basis, channel), s.low, rank).max(token).max(head)

    def select(score, ctx):
        forced = first(sink) | last(recent)
        return forced | topk(score, maximum(4, floor(fraction * ctx.pages)), among=~forced)
