from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class RunningAverage:
    """Block top-k whose scores are averaged over the steps, so that a page once in use is given up slowly.

    score_t(p) = decay * score_{t-1}(p) + mean over heads of q_t . mean(K_p), 0 before a page's first step
    Source: `running_avg_block_sparse` of Vortex (arXiv 2606.06453), decay 0.5 there.
    Deviations: none; the state belongs to the request, so prompts may share their cache.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages
    decay = knob.float(0.0, 0.99, default=0.5)
    running = memory.step(page)

    def summarize(k): return dict(centre=k.mean(token))

    def score(q, s, m): return decay * m.running + dot(q.mean(head), s.centre, channel)

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)

    def remember(score): return dict(running=score)
