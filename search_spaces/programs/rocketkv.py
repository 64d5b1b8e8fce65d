from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class RocketKV:
    """Quest on the channels in which the queries of the group are largest, chosen anew at every step.

    score(p) = max over heads of sum over d in C of max(q_d min(K_pd), q_d max(K_pd)), C = the `channels` channels with
    the largest sum over heads of |q_d|
    Source: the second stage, hybrid sparse attention, of RocketKV (Behnam et al., Accelerating Long-Context LLM
    Inference via Two-Stage KV Cache Compression, arXiv 2502.14051).
    Deviations: the first stage, eviction of the prompt, is left out; channels that tie with the last chosen one count
    too.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages
    channels = knob.int(4, 64, log=True, default=32)

    def summarize(k): return dict(lo=k.min(token), hi=k.max(token))

    def score(q, s):
        size = abs(q).sum(head)
        least = size.sort(channel).take(channel, channels - 1, fill=0.0)
        kept = where(size < least, 0.0, q)
        return maximum(kept * s.lo, kept * s.hi).sum(channel).max(head)

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)
