# A bound is computed.
@program(page=16)
class Centroid:
    budget = knob.int(1, 2 * 256, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: literal at 4:26
# says: written out
# hint: literals
# fix 4:     budget = knob.int(1, 512, default=64)
