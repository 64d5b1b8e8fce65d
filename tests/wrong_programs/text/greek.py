# A name is written with a Greek letter.
@program(page=16)
class Centroid:
    β = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, β)

# finding: name-not-ascii at 4:5
# says: outside a-z
# hint: plain ones
# fix 4:     budget = knob.int(1, 512, log=True, default=64)
# fix 13:         return topk(score, budget)
