# A summary selects pages.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token) * first(1))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: selector-in-summary at 7:44
# says: which summarize cannot
# hint: select
# fix 7:         return dict(centre=k.mean(token))
