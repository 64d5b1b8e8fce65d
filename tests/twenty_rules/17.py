from vortexlab.dsl import *


@program(page=16)
class RestAsEntries:
    """Selected pages exactly, every other page as one entry of the same softmax."""

    def summarize(k, v):
        return dict(key=k.mean(token), value=v.mean(token))

    def score(q, s):
        return dot(q, s.key, channel).max(head)

    def select(score):
        forced = first(1) | last(2)
        return forced | topk(score, 32, among=~forced)

    def attend(s, pages, ctx):
        return attention(pages, keys=s.key, values=s.value, among=~pages, entry_log_weight=log(ctx.page))
