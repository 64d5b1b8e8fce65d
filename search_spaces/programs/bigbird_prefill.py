from vortexlab.dsl import *


@program(page=64, block=64)
class BigBirdPrefill:
    """Prefill in which every block of queries reads global pages, a window and random pages; decode is dense.

    selected = {p < sink} + {the last `recent` pages} + `random_pages` random pages of the rest, drawn for each block
    Source: BigBird (Zaheer et al., Big Bird: Transformers for Longer Sequences, arXiv 2007.14062).
    Deviations: causal, so global tokens do not read what comes after them; the draw differs from layer to layer.
    """

    sink = knob.int(0, 8, default=2)  # pages
    recent = knob.int(1, 512, log=True, default=3)  # pages
    random_pages = knob.int(1, 256, log=True, default=3)  # pages

    def pool(q): return q.mean(query)

    def select(ctx):
        forced = first(sink) | last(recent)
        return where(ctx.prefill, forced | random(random_pages, among=~forced), everything())
