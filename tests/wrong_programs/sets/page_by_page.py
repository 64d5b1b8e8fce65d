# The choice between two sets is made page by page.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return where(score > 0.0, topk(score, budget), first(1))

# finding: set-condition at 13:16
# says: must be a scalar
# hint: above(score, threshold
# fix 13:         return above(score, 0.0, max=budget)
