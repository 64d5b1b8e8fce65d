# Two names are given values at once.
@program(page=16)
class TwoScores:
    def summarize(k, v):
        return dict(centre=k.mean(token), energy=v.norm(channel).mean(token))

    def score(q, s):
        coarse = dot(q, s.centre, channel).max(head)
        return dict(coarse=coarse, fine=coarse + log(s.energy + 0.001))

    def select(score):
        coarse, fine = score.coarse, score.fine
        shortlist = topk(coarse, 256)
        return topk(fine, 64, among=shortlist)

# finding: not-in-language at 12:9
# says: coarse, fine
# hint: one plain name
# finding: unknown-name at 13:26
# fix 12:         coarse = score.coarse
# fix 12:         fine = score.fine
