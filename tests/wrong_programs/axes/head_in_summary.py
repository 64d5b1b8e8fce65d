# A summary reduces over query heads.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(head))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: axis-missing at 7:35
# says: no axis head
# hint: token, channel
# fix 7:         return dict(centre=k.mean(token))
