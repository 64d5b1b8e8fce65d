# A comma is missing.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score budget)

# finding: syntax at 13:21
# says: not Python syntax
# hint: comma
# fix 13:         return topk(score, budget)
