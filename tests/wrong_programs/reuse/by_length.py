# Which layers reuse depends on the length.
@program(page=16)
class Reused:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score, ctx):
        return reuse(topk(score, 64), layers=ctx.length > 4096)

# finding: reuse-condition at 11:46
# says: when a layer is compiled
# hint: ctx.layer % 4 == 0
# fix 11:         return reuse(topk(score, 64), layers=ctx.layer % 4 == 0)
