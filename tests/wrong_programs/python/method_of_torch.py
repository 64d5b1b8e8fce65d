# A value is asked for its transpose.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre.transpose(0, 1), channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: unknown-function at 10:23
# says: transpose
# hint: matched by name
# fix 10:         return dot(q, s.centre, channel).max(head)
