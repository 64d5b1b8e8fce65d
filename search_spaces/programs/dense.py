from vortexlab.dsl import *


@program(page=16)
class Dense:
    """Every page is read: softmax(scale * q K^T) V over the whole context.

    Source: Vaswani et al., Attention Is All You Need, arXiv 1706.03762; the baseline of every other program.
    Deviations: none.
    """

    def select():
        return everything()
