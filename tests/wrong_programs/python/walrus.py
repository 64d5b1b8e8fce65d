# A name is given a value inside an expression.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(x := score, budget)

# finding: not-in-language at 13:21
# says: x := score
# hint: line of its own
# fix 13:         x = score
# fix 13:         return topk(x, budget)
