# A share of the pages is no whole number.
@program(page=16)
class Centroid:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score, ctx):
        return topk(score, 0.1 * ctx.pages)

# finding: count-not-int at 11:28
# says: int scalar
# hint: floor(0.1 * ctx.pages)
# fix 11:         return topk(score, floor(0.1 * ctx.pages))
