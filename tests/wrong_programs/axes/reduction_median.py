# There is no median.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.reduce("median", token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: unknown-reduction at 7:37
# says: no reduction
# hint: did you mean mean?
# fix 7:         return dict(centre=k.mean(token))
