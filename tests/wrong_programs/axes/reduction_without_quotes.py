# The name of a reduction lacks its quotes.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.reduce(max, token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: unknown-reduction at 7:37
# says: a word in quotes
# hint: "max"
# fix 7:         return dict(centre=k.reduce("max", token))
