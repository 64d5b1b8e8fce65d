from vortexlab.dsl import *


@program(page=16)
class Dense:
    """Every page is read: softmax(scale * q K^T) V over the whole context.

    The baseline that every other program is measured against (Vaswani et al., Attention Is All You Need,
    arXiv 1706.03762).
    """

    def select():
        return everything()
