# A reduction is written as a function.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=norm(k, token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: unknown-function at 7:28
# says: unknown function norm
# hint: x.norm(axis)
# fix 7:         return dict(centre=k.norm(token))
