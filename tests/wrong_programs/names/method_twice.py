# select stands twice.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

    def select(score):
        return topk(score, 32)

# finding: method-twice at 15:5
# says: defined twice
# hint: keep one
# fix 14:
# fix 15:
# fix 16:
