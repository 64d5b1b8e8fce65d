# dot contracts pages.
@program(page=16)
class TwoScores:
    def summarize(k, v):
        return dict(centre=k.mean(token), energy=v.norm(channel).mean(token))

    def score(q, s):
        coarse = dot(q, s.centre, channel).max(head)
        return dict(coarse=coarse, fine=coarse - dot(coarse, s.energy, page))

    def select(score):
        shortlist = topk(score.coarse, 256)
        return topk(score.fine, 64, among=shortlist)

# finding: dot-page at 9:72
# says: does not run over page
# hint: (a * b).sum(page)
# fix 9:         return dict(coarse=coarse, fine=coarse - (coarse * s.energy).sum(page))
