# An axis is given by its position.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(0))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: axis-expected at 7:35
# says: the name of an axis
# hint: x.mean(token)
# fix 7:         return dict(centre=k.mean(token))
