# A summary has no name.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: mapping at 7:16
# says: named values
# hint: name every value
# fix 7:         return dict(centre=k.mean(token))
