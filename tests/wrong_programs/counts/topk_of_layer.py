# Pages are chosen by a number that all share.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score, ctx):
        return topk(ctx.layer, budget)

# finding: score-axes at 13:21
# says: one score per page
# hint: one value per page
# fix 12:     def select(score):
# fix 13:         return topk(score, budget)
