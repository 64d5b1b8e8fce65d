# Scores are concatenated over pages.
@program(page=16)
class TwoScores:
    def summarize(k, v):
        return dict(centre=k.mean(token), energy=v.norm(channel).mean(token))

    def score(q, s):
        coarse = dot(q, s.centre, channel).max(head)
        return dict(coarse=concat(coarse, coarse, page), fine=coarse + log(s.energy + 0.001))

    def select(score):
        shortlist = topk(score.coarse, 256)
        return topk(score.fine, 64, among=shortlist)

# finding: page-axis at 9:51
# says: concat does not work on page
# hint: window
# fix 9:         return dict(coarse=coarse, fine=coarse + log(s.energy + 0.001))
