# A method has a decorator.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    @staticmethod
    def select(score):
        return topk(score, budget)

# finding: method-shape at 13:5
# says: plain parameters
# hint: decorators
# fix 12:
