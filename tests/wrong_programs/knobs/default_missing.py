# A knob has no default.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: knob-default at 4:14
# says: no default
# hint: default=1
# fix 4:     budget = knob.int(1, 512, log=True, default=64)
