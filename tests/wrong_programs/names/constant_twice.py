# A constant is given twice.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)
    budget = 32

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: name-taken at 5:5
# says: budget is taken
# hint: another name
# fix 5:
