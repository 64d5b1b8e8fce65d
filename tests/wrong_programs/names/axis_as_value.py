# An axis is multiplied.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head) * page

    def select(score):
        return topk(score, budget)

# finding: axis-as-value at 10:54
# says: name of an axis
# hint: index(page)
# fix 10:         return dot(q, s.centre, channel).max(head) * float(index(page))
