# A number is kept.
@program(page=16)
class Reused:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score, ctx):
        return reuse(64, every=8)

# finding: not-a-set at 11:22
# says: must be a set
# hint: topk(score, n)
# fix 11:         return reuse(topk(score, 64), every=8)
