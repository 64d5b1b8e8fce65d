# An axis is given as axis=.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(axis=token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: argument-count at 7:28
# says: names of the axes
# hint: x.mean(token)
# fix 7:         return dict(centre=k.mean(token))
