# A function of numpy is called.
@program(page=16)
class TwoScores:
    def summarize(k, v):
        return dict(centre=k.mean(token), energy=v.norm(channel).mean(token))

    def score(q, s):
        coarse = dot(q, s.centre, channel).max(head)
        return dict(coarse=coarse, fine=coarse + np.log(s.energy + 0.001))

    def select(score):
        shortlist = topk(score.coarse, 256)
        return topk(score.fine, 64, among=shortlist)

# finding: unknown-name at 9:50
# says: unknown name np
# hint: log(x)
# fix 9:         return dict(coarse=coarse, fine=coarse + log(s.energy + 0.001))
