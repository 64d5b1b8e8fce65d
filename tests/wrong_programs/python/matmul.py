# Queries and keys are multiplied with @.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return (q @ s.centre).max(head)

    def select(score):
        return topk(score, budget)

# finding: not-in-language at 10:17
# says: @
# hint: dot(a, b, axis)
# fix 10:         return dot(q, s.centre, channel).max(head)
