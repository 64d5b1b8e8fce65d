# The class has another decorator.
@dataclass
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: decorator at 2:2
# says: not the decorator
# hint: @program(page=16)
# fix 2: @program(page=16)
