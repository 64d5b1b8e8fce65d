# A summary is a truth value.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token) > 0.0)

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: summary-kind at 7:28
# says: must be a float
# hint: float(x)
# fix 7:         return dict(centre=float(k.mean(token) > 0.0))
