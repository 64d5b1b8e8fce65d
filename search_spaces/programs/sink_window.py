from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class SinkWindow:
    """The first pages as attention sinks and a window of the last ones; no score at all.

    selected = {p < sink} + {the last `recent` pages}
    Source: StreamingLLM (Xiao et al., Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453).
    Deviations: whole pages; absolute positions instead of positions renumbered inside the cache.
    """

    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=32)  # pages

    def select(): return first(sink) | last(recent)
