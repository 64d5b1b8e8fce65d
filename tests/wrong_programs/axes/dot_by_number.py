# dot is told the last axis by number.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, -1).max(head)

    def select(score):
        return topk(score, budget)

# finding: axis-expected at 10:33
# says: the name of an axis
# hint: x.mean(token)
# fix 10:         return dot(q, s.centre, channel).max(head)
