# A score is multiplied by a comparison.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        x = dot(q, s.centre, channel).max(head)
        return x * (x > 0.0)

    def select(score):
        return topk(score, budget)

# finding: truth-and-number at 11:16
# says: a * b takes numbers
# hint: float(x)
# fix 11:         return x * float(x > 0.0)
