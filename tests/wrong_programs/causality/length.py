# A summary reads the length of the request.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k, ctx):
        return dict(centre=k.sum(token) / ctx.length)

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: summary-not-pure at 7:43
# says: ctx.length
# hint: page's tokens alone
# fix 7:         return dict(centre=k.sum(token) / ctx.page)
