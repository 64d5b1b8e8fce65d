# The score keeps the channels.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return q * s.centre

    def select(score):
        return topk(score, budget)

# finding: score-axes at 13:21
# says: one score per page
# hint: reduce channel
# fix 10:         return (q * s.centre).sum(channel).max(head)
