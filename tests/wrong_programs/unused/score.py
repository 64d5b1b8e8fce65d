# Nothing reads a score (warning).
@program(page=16)
class TwoScores:
    def summarize(k, v):
        return dict(centre=k.mean(token), energy=v.norm(channel).mean(token))

    def score(q, s):
        coarse = dot(q, s.centre, channel).max(head)
        return dict(coarse=coarse, fine=coarse + log(s.energy + 0.001))

    def select(score):
        shortlist = topk(score.coarse, 256)
        return shortlist

# finding: unused-score at 9:41
# says: score.fine
# hint: remove fine=
# finding: unused-summary at 5:50
# fix 13:         return topk(score.fine, 64, among=shortlist)
