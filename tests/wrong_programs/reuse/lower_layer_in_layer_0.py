# Layer 0 reuses the set of a layer below it.
@program(page=16)
class Reused:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score, ctx):
        return reuse(topk(score, 64), layers=ctx.layer % 4 == 1)

# finding: reuse-before-write at 11:16
# says: layer 0 reuses
# hint: add the first layer
# fix 11:         return reuse(topk(score, 64), layers=ctx.layer == 0 or ctx.layer % 4 == 1)
