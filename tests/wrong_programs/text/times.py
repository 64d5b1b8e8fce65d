# A product is written with a multiplication sign.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head) × 2.0

    def select(score):
        return topk(score, budget)

# finding: stray-character at 10:52
# says: no meaning
# hint: write *
# fix 10:         return dot(q, s.centre, channel).max(head) * 2.0
