# A range runs downwards.
@program(page=16)
class Centroid:
    budget = knob.int(512, 1, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: knob-range at 4:14
# says: empty
# hint: 1, 512
# fix 4:     budget = knob.int(1, 512, default=64)
