# The budget is all pages (warning).
@program(page=16)
class Centroid:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score, ctx):
        return topk(score, ctx.pages)

# finding: whole-budget at 11:16
# says: every page
# hint: floor(0.1 * ctx.pages)
# fix 11:         return topk(score, floor(0.1 * ctx.pages))
