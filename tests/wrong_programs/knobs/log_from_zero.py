# A logarithmic range begins at 0.
@program(page=16)
class Centroid:
    budget = knob.int(0, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: knob-range at 4:14
# says: starts at 0
# hint: start above 0
# fix 4:     budget = knob.int(1, 512, log=True, default=64)
