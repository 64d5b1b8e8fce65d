# The class has a base class.
@program(page=16)
class Centroid(Program):
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: class-bases at 3:1
# says: no base classes
# hint: class Centroid:
# fix 3: class Centroid:
