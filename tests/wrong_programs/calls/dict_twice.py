# Two summaries have one name.
@program(page=16)
class TwoScores:
    def summarize(k, v):
        return dict(centre=k.mean(token), centre=v.norm(channel).mean(token))

    def score(q, s):
        coarse = dot(q, s.centre, channel).max(head)
        return dict(coarse=coarse, fine=coarse + log(s.energy + 0.001))

    def select(score):
        shortlist = topk(score.coarse, 256)
        return topk(score.fine, 64, among=shortlist)

# finding: mapping at 5:16
# says: each once
# hint: dict(a=..., b=...)
# fix 5:         return dict(centre=k.mean(token), energy=v.norm(channel).mean(token))
