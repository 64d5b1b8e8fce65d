# A budget is beyond 2**31.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 4000000000)

# finding: number-range at 13:28
# says: too large
# hint: number of pages
# fix 13:         return topk(score, budget)
