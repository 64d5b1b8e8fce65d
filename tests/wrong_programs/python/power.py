# A square is written with **.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        x = dot(q, s.centre, channel).max(head)
        return x ** 2

    def select(score):
        return topk(score, budget)

# finding: not-in-language at 11:16
# says: **
# hint: x * x
# fix 11:         return x * x
