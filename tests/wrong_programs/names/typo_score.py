# A score is misspelt.
@program(page=16)
class TwoScores:
    def summarize(k, v):
        return dict(centre=k.mean(token), energy=v.norm(channel).mean(token))

    def score(q, s):
        coarse = dot(q, s.centre, channel).max(head)
        return dict(coarse=coarse, fine=coarse + log(s.energy + 0.001))

    def select(score):
        shortlist = topk(score.corse, 256)
        return topk(score.fine, 64, among=shortlist)

# finding: unknown-member at 12:26
# says: score has no corse
# hint: did you mean coarse?
# fix 12:         shortlist = topk(score.coarse, 256)
