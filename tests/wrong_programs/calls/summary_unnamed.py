# summarize returns a value.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return k.mean(token)

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: summary-mapping at 7:9
# says: by name
# hint: name=value
# fix 7:         return dict(centre=k.mean(token))
