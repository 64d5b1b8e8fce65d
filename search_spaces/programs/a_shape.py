from vortexlab.dsl import *


@program(page=64, block=64)
class AShape:
    """Prefill in which every block of queries reads the first pages and a sliding window; decode is dense.

    selected = {p < sink} + {the last `recent` pages}
    Source: the A-shape of MInference (Jiang et al., Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse
    Attention, arXiv 2407.02490); with global tokens at the start alone also the pattern of Longformer (Beltagy et al.,
    arXiv 2004.05150).
    Deviations: all heads have the one pattern; MInference finds one for each head offline.
    """

    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=16)  # pages

    def pool(q): return q.mean(query)

    def select(ctx): return where(ctx.prefill, first(sink) | last(recent), everything())
