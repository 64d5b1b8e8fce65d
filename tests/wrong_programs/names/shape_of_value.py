# The length of an axis is read from a shape.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.sum(token) / k.shape)

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: unknown-attribute at 7:43
# says: no attribute shape
# hint: ctx.page
# fix 6:     def summarize(k, ctx):
# fix 7:         return dict(centre=k.sum(token) / ctx.page)
