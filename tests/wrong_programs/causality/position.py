# A summary reads the query's position.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k, ctx):
        return dict(centre=k.mean(token) * float(ctx.position))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: summary-not-pure at 7:50
# says: ctx.position
# hint: in score
# fix 6:     def summarize(k):
# fix 7:         return dict(centre=k.mean(token))
