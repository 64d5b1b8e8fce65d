# Floats are divided with //.
@program(page=16)
class Centroid:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score, ctx):
        return topk(score, ctx.pages // 10.0)

# finding: integer-only at 11:28
# says: works on ints
# hint: floor(a / b)
# fix 11:         return topk(score, floor(ctx.pages / 10.0))
