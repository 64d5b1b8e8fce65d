# A number is beyond what executors hold.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head) * 1e40

    def select(score):
        return topk(score, budget)

# finding: number-range at 10:54
# says: outside the range
# hint: 1e+30
# fix 10:         return dot(q, s.centre, channel).max(head) * 1e10
