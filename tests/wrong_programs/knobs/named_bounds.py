# The bounds of a knob have names.
@program(page=16)
class Centroid:
    budget = knob.int(low=1, high=512, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: unknown-argument at 4:27
# says: no option low
# hint: without names
# fix 4:     budget = knob.int(1, 512, default=64)
