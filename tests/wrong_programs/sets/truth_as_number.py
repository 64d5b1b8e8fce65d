# where mixes a number and a truth value.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        x = dot(q, s.centre, channel).max(head)
        return where(x > 0.0, x, x > -1.0)

    def select(score):
        return topk(score, budget)

# finding: truth-and-number at 11:16
# says: one kind
# hint: float(x)
# fix 11:         return where(x > 0.0, x, float(x > -1.0))
