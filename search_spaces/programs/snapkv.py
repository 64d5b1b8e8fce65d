from vortexlab.dsl import *


@program(page=knob.choice(8, 16, 32, 64, default=16))
class SnapKV:
    """Pages chosen when generation begins, by the attention of the prompt's last query, and kept.

    mass(p, h) = softmax over pages of log(sum over the page's tokens of exp(scale * q_h . k)); score(p, h) = the
    largest mass among p and its neighbours; one list per query head, chosen again at every `every`-th position
    Source: SnapKV (Li et al., LLM Knows What You are Looking for Before Generation, arXiv 2404.14469), which pools the
    attention of the last 32 queries over neighbouring tokens.
    Deviations: pages instead of tokens; one observing query; nothing is evicted, and the choice is renewed after
    `every` steps; pages that are complete later come in through the window until then. The keys themselves are the
    summary.
    """

    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)  # pages
    recent = knob.int(1, 512, log=True, default=2)  # pages
    near = knob.choice(1, 3, 5, default=3)  # pages
    every = knob.int(1, 4096, log=True, default=1024)  # steps

    def summarize(k): return dict(keys=k)

    def score(q, s, ctx):
        logits = ctx.scale * dot(q, s.keys, channel)
        top = logits.max(token)
        mass = softmax(top + log(exp(logits - top).sum(token)), page)
        return mass.window(page, beside=near, fill=0.0).max(beside)

    def select(score):
        forced = first(sink) | last(recent)
        return forced | reuse(topk(score, budget, among=~forced), every=every)
