# A step does not lead to the end.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, step=16, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: knob-range at 4:14
# says: does not lead
# hint: high - 1 and default - 1
# fix 4:     budget = knob.int(16, 512, step=16, default=64)
