# A mapping stands inside a method.
@program(page=16)
class TwoScores:
    def summarize(k, v):
        return dict(centre=k.mean(token), energy=v.norm(channel).mean(token))

    def score(q, s):
        coarse = dot(q, s.centre, channel).max(head)
        both = dict(coarse=coarse, fine=coarse + log(s.energy + 0.001))
        return both

    def select(score):
        shortlist = topk(score.coarse, 256)
        return topk(score.fine, 64, among=shortlist)

# finding: mapping at 9:16
# says: only behind return
# hint: return dict
# fix 9:         return dict(coarse=coarse, fine=coarse + log(s.energy + 0.001))
# fix 10:
