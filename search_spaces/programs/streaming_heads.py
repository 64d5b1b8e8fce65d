from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class StreamingHeads:
    """Some KV heads read everything, the others sinks and a window; which is learned offline.

    selected = every page where retrieval > 0.5, else {p < sink} + {the last `recent` pages}
    Source: DuoAttention (Xiao et al., Efficient Long-Context LLM Inference with Retrieval and Streaming Heads,
    arXiv 2410.10819); the static heads of LServe (arXiv 2502.14866).
    Parameters: retrieval [layer, KV head], the gate of every head.
    Deviations: the cache of a streaming head is not made smaller; prefill is dense.
    """

    sink = knob.int(0, 8, default=4)  # pages
    recent = knob.int(1, 512, log=True, default=16)  # pages
    retrieval = param(per_kv_head=True)

    def select(): return where(retrieval > 0.5, everything(), first(sink) | last(recent))
