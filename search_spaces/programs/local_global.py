from vortexlab.dsl import *


@program(page=64, block=64)
class LocalGlobal:
    """Prefill in spans: a block reads its own span so far, and the last pages of all earlier spans; decode is dense.

    selected = {p in the own page's span of `span` pages} + {p : p mod span = span - 1}
    Source: the fixed pattern of Sparse Transformers (Child et al., Generating Long Sequences with Sparse Transformers,
    arXiv 1904.10509), on pages instead of tokens, with one summary page a span.
    Deviations: every head has both parts; the paper may give them to different heads.
    """

    span = knob.int(2, 64, log=True, default=8)  # pages

    def pool(q): return q.mean(query)

    def select(ctx):
        local = last((ctx.pages - 1) % span + 1)
        return where(ctx.prefill, local | stride(span, offset=span - 1), everything())
