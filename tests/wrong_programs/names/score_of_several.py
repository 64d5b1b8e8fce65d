# score returns several values and is read as one.
@program(page=16)
class TwoScores:
    def summarize(k, v):
        return dict(centre=k.mean(token), energy=v.norm(channel).mean(token))

    def score(q, s):
        coarse = dot(q, s.centre, channel).max(head)
        return dict(coarse=coarse, fine=coarse + log(s.energy + 0.001))

    def select(score):
        shortlist = topk(score.coarse, 256)
        return topk(score, 64, among=shortlist)

# finding: record-as-value at 13:21
# says: score is not a value by itself
# hint: score.fine
# fix 13:         return topk(score.fine, 64, among=shortlist)
