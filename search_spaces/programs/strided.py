from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class Strided:
    """Every n-th page beside a sliding window.

    selected = {p : p mod stride = 0} + {the last `recent` pages}
    Source: the strided pattern of Sparse Transformers (Child et al., Generating Long Sequences with Sparse
    Transformers, arXiv 1904.10509).
    Deviations: on pages instead of tokens, and from the first page on instead of relative to the query.
    """

    stride_pages = knob.int(2, 128, log=True, default=8)  # pages
    recent = knob.int(1, 512, log=True, default=16)  # pages

    def select():
        return stride(stride_pages) | last(recent)
