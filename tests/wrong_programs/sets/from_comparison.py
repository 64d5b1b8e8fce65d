# The selection is a comparison.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return score > 0.0

# finding: not-a-set at 13:9
# says: set of pages
# hint: above(score, 0.0
# fix 13:         return above(score, 0.0, max=budget)
