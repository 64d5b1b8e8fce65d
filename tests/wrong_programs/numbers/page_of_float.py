# A page size is a float.
@program(page=16.0)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: whole-number at 2:15
# says: whole number
# hint: 1 to 256
# fix 2: @program(page=16)
