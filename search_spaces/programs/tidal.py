from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class Tidal:
    """Two layers look at every key; the layers after each read what it found.

    score(p) = max over heads and tokens of q . k, in layers `anchor` and `again * layers`; the other layers take the
    set of the nearest of these below; layers up to `anchor` and at the second anchor are dense
    Source: TidalDecode (Yang et al., Fast and Accurate LLM Decoding with Position Persistent Sparse Attention,
    arXiv 2410.05076).
    Deviations: pages instead of single tokens, by their best token; the keys themselves are the summary, so scoring
    costs as much as it does in the paper, a read of all keys, and memory for a copy of them.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages
    anchor = knob.int(1, 4, default=2)  # layer
    again = knob.float(0.2, 0.9, default=0.4)  # of the layers

    def summarize(k): return dict(keys=k)

    def score(q, s): return dot(q, s.keys, channel).max(token).max(head)

    def select(score, ctx):
        looks = ctx.layer <= anchor or ctx.layer == floor(again * ctx.layers)
        forced = first(sink) | last(recent)
        found = reuse(topk(score, budget, among=~forced), layers=looks)
        return where(looks, everything(), forced | found)
