# max of one value names no axis.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return max(dot(q, s.centre, channel))

    def select(score):
        return topk(score, budget)

# finding: argument-count at 10:16
# says: max lacks b
# hint: x.max(axis)
# fix 10:         return dot(q, s.centre, channel).max(head)
