# reuse is told steps and layers.
@program(page=16)
class Reused:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score, ctx):
        return reuse(topk(score, 64), every=8, layers=ctx.layer % 4 == 0)

# finding: reuse-kind at 11:16
# says: both
# hint: nest
# fix 11:         return reuse(reuse(topk(score, 64), every=8), layers=ctx.layer % 4 == 0)
