# The classes behind a value are asked for.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return score.__class__.__mro__

# finding: unknown-attribute at 13:16
# says: __class__
# hint: known here
# fix 13:         return topk(score, budget)
