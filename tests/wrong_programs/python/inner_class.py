# A class stands inside the class.
@program(page=16)
class Centroid:
    class Options:
        size = 4

    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: not-in-language at 4:5
# says: class Options
# hint: no inner classes
# fix 4:
# fix 5:
# fix 6:
