# A budget is made whole with int.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score, ctx):
        return topk(score, int(0.1 * ctx.pages))

# finding: unknown-function at 13:28
# says: int
# hint: floor(x)
# fix 4:
# fix 5:
# fix 13:         return topk(score, floor(0.1 * ctx.pages))
