# dot is told no axis.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre).max(head)

    def select(score):
        return topk(score, budget)

# finding: argument-count at 10:16
# says: dot lacks axis
# hint: dot(a, b, axis)
# fix 10:         return dot(q, s.centre, channel).max(head)
