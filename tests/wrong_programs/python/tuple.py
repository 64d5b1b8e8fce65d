# The score is a pair.
@program(page=16)
class TwoScores:
    def summarize(k, v):
        return dict(centre=k.mean(token), energy=v.norm(channel).mean(token))

    def score(q, s):
        coarse = dot(q, s.centre, channel).max(head)
        return coarse, coarse + log(s.energy + 0.001)

    def select(score):
        shortlist = topk(score.coarse, 256)
        return topk(score.fine, 64, among=shortlist)

# finding: not-in-language at 9:16
# says: coarse
# hint: dict(a=..., b=...)
# fix 9:         return dict(coarse=coarse, fine=coarse + log(s.energy + 0.001))
