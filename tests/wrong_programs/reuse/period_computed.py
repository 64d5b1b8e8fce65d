# The period is computed.
@program(page=16)
class Reused:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score, ctx):
        return reuse(topk(score, 64), every=ctx.pages // 8)

# finding: whole-number at 11:45
# says: whole number or an int knob
# hint: write a number
# fix 11:         return reuse(topk(score, 64), every=8)
