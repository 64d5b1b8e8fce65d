from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class BigBird:
    """Global pages, a sliding window, and random pages between them.

    selected = {p < sink} + {the last `recent` pages} + `random_pages` random pages of the rest
    Source: BigBird (Zaheer et al., Big Bird: Transformers for Longer Sequences, arXiv 2007.14062).
    Deviations: whole pages; the random pages are drawn afresh for every layer, KV head and position.
    """

    sink = knob.int(0, 8, default=2)  # pages
    recent = knob.int(1, 512, log=True, default=16)  # pages
    random_pages = knob.int(1, 256, log=True, default=16)  # pages

    def select():
        forced = first(sink) | last(recent)
        return forced | random(random_pages, among=~forced)
