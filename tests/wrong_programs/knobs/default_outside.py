# A default is outside its range.
@program(page=16)
class Centroid:
    budget = knob.int(1, 32, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: knob-default at 4:14
# says: outside its range
# hint: widen
# fix 4:     budget = knob.int(1, 512, default=64)
