# A summary is a number.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token), weight=2.0)

    def score(q, s):
        return dot(q, s.centre, channel).max(head) * s.weight

    def select(score):
        return topk(score, budget)

# finding: summary-kind at 7:50
# says: made of k or v
# hint: no summary
# fix 7:         return dict(centre=k.mean(token))
# fix 10:         return dot(q, s.centre, channel).max(head) * 2.0
