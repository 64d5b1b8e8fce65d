# A constant has a type.
@program(page=16)
class Centroid:
    budget: int = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: not-in-language at 4:5
# says: budget: int
# hint: without a type
# finding: unknown-name at 13:28
# fix 4:     budget = knob.int(1, 512, log=True, default=64)
