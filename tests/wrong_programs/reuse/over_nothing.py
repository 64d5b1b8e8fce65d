# reuse does not say over what.
@program(page=16)
class Reused:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score, ctx):
        return reuse(topk(score, 64))

# finding: reuse-kind at 11:16
# says: neither
# hint: every=8
# fix 11:         return reuse(topk(score, 64), every=8)
